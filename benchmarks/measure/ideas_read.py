import json, collections, numpy as np
from scipy.stats import t as T
R=collections.defaultdict(dict)
for l in open('ideas-0.jsonl'):
    name,seed,n,key,loss,v=json.loads(l); R[name,n][tuple(key),seed]=(loss,v)
tables=sorted({k[0] for k in R}); ns=sorted({k[1] for k in R})
seeds=range(10)
ideas=[]
for k,_ in R[tables[0],ns[0]]:
    if k[0] not in ideas: ideas.append(k[0])
print(f"{'':24}", *(f"{'n='+str(n):^44}" for n in ns))
base={}
for idea in ideas:
    row=[]
    for n in ns:
        dl,dv=[],[]
        for tab in tables:
            keys=[k for k in {k for k,_ in R[tab,n]} if k[0]==idea]
            others=[o for o in tables if o!=tab]
            best=min(sorted(keys),key=lambda k: np.mean([R[o,n][k,s][0] for o in others for s in seeds]))
            res=np.array([R[tab,n][best,s] for s in seeds])
            if idea=="independent": base[tab,n]=res
            d=res-base[tab,n] if idea!="independent" else res
            dl.append(d[:,0]); dv.append(d[:,1])
        f=lambda x: (lambda m,h: f"{m:+.3f}±{h:.3f}")(np.mean(x), T.ppf(.975,9)*np.mean(x,0).std(ddof=1)/10**.5)
        row.append(f"loss {f(dl)} value {f(dv)}")
    print(f"{idea:24}", *row)
for n in ns:
    print(n)
    for idea in ideas[1:]:
        o=[]
        for tab in tables:
            keys=[k for k in {k for k,_ in R[tab,n]} if k[0]==idea]
            best=min(sorted(keys),key=lambda k: np.mean([R[o,n][k,s][0] for o in tables if o!=tab for s in seeds]))
            d=np.array([R[tab,n][best,s] for s in seeds])-base[tab,n]
            h=T.ppf(.975,9)*d.std(0,ddof=1)/10**.5
            o.append(f"{tab[-10:]} {best[1:]} {d[:,1].mean():+.3f}±{h[1]:.3f}")
        print(f"{idea:24}", " | ".join(o))
