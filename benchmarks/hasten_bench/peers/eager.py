"""PyTorch eager: the network as it was handed over. The baseline that every ratio is taken against.

It is stored in the form that hasten's eager target runs operator by operator, since the timer reads no pickles.
"""

REQUIREMENTS = ()
TITLE = "PyTorch eager"


def fp32(job):
    import hasten
    from hasten.graph.storage import save_graph

    save_graph(hasten.capture(job.network(), job.example()), job.out)
    return {"target": "eager"}


VARIANTS = {"fp32": fp32}
KINDS = {"fp32": ("image", "text", "decoder")}
