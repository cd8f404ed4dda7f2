"""How torch.compile is used wherever it is used here."""

import torch


def options() -> dict:
    """What `compile` is told; what it has to know besides is set here, before anything is compiled."""
    import torch._inductor.config as inductor

    # each shape by itself, as many as there are: code for all shapes at once is slower
    torch._dynamo.config.recompile_limit = 64
    # Code is written for a number of threads and kept on disk under a key that does not name it; code for
    # another number, found there by accident, took twenty times as long. This setting is part of the key.
    inductor.cpp.threads = torch.get_num_threads()
    return {"dynamic": False}
