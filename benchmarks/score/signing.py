"""Signatures of exports and submissions: ed25519, by `cryptography` (the extra ``sign``).

A signature says who vouches for a file. It does not say that the file is right: `verify` does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.plan.toml import parse_toml
from llmqueue_gym.errors import UsageError, needing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

KEYS = "keys.toml"
"""File of known public keys, beside the submissions."""

_NEEDING = partial(needing, "a signature", "cryptography", "sign")


class Signature(NamedTuple):
    """A public key and its signature, in hexadecimal."""

    key: str
    value: str


def new_key(path: Path) -> str:
    """Write a new private key, which only its owner can read; return the public one.

    Raises
    ------
    UsageError
        If there is a file already, or it cannot be written.
    """
    with _NEEDING():
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.generate()
    content = private.private_bytes(
        form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()
    )
    write_secret(path, content)
    return _public(private)


def write_secret(path: Path, content: bytes) -> None:
    """Write a new file that only its owner can read.

    Raises
    ------
    UsageError
        If there is a file already, or it cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise UsageError(f"{path} is there already, and is not overwritten: name another") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error}") from error
    with os.fdopen(handle, "wb") as stream:
        stream.write(content)


def sign(path: Path, message: bytes) -> Signature:
    """Sign a message with the private key of a file.

    Raises
    ------
    UsageError
        If the file is no key of `new_key`.
    """
    private = _read_key(path)
    return Signature(_public(private), private.sign(message).hex())


def public_key(path: Path) -> str:
    """Return the public key that belongs to the private one of a file."""
    return _public(_read_key(path))


def is_signed(message: bytes, signature: Signature) -> bool:
    """Whether a signature is that of the message by its key."""
    with _NEEDING():
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(signature.key))
        key.verify(bytes.fromhex(signature.value), message)
    except (ValueError, InvalidSignature):
        return False
    return True


def read_keys(path: Path) -> dict[str, str]:
    """Read who is known: public key -> name; nobody if there is no such file.

    Raises
    ------
    UsageError
        If it is not a table of names and public keys.
    """
    if not path.is_file():
        return {}
    known = parse_toml(path.read_bytes(), str(path))
    for name, key in known.items():
        if not isinstance(key, str) or len(key) != 64:
            raise UsageError(f'{path}: {name} = {key!r} must read "@handle" = "PUBLIC KEY"')
    return {key: name for name, key in known.items()}


def signer(signature: Signature, known: Mapping[str, str]) -> str:
    """Return who signed: the name of the key, or words for one that nobody knows."""
    return known.get(signature.key, f"an unknown key, {signature.key[:12]}")


def _read_key(path: Path) -> Ed25519PrivateKey:
    with _NEEDING():
        from cryptography.hazmat.primitives import serialization as form
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        private = form.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{path} is no key of `llmqueue-bench key new`: {error}") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise UsageError(f"{path} is no ed25519 key: `llmqueue-bench key new FILE` makes one")
    return private


def _public(private: Ed25519PrivateKey) -> str:
    return bytes(private.public_key().public_bytes_raw()).hex()
