"""Questions of three topics."""

TOPICS = (
    "poem rain autumn verse rhyme song night river",
    "proof prime number theorem root integral sum square",
    "python function loop class error import file test",
)


def question(rng, topic, number):
    return f"{' '.join(rng.choice(TOPICS[topic].split(), 4))} {number}"
