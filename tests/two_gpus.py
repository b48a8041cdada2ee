"""Models over two simulated GPUs, with accelerate's hooks, as ``device_map="auto"`` puts them there."""

import contextlib

import torch
from accelerate import dispatch_model
from simcuda import Machine


def spread(model, split, **elsewhere):
    """Where the parts of a model go: as transformers has it, what follows the layers is on the last GPU.

    Args:
        model: the model.
        split: the first decoder layer on the second GPU.
        **elsewhere: parts of ``model.model`` or of its decoder that go to a device of their own.
    """
    decoder = model.get_decoder()
    prefix = next(name for name, part in model.named_modules() if part is decoder)
    places = {name: "cuda:1" for name, _ in model.named_children() if name != "model"}
    places |= {f"model.{name}": "cuda:0" for name, part in model.model.named_children() if part is not decoder}
    places |= {f"model.{name}": "cuda:0" for name, _ in model.model.named_parameters(recurse=False)}
    for name, part in decoder.named_children():
        places[f"{prefix}.{name}"] = "cuda:0" if name.startswith("embed") else "cuda:1"
        if name == "layers":
            del places[f"{prefix}.layers"]
            places |= {f"{prefix}.layers.{i}": f"cuda:{int(i >= split)}" for i in range(len(part))}
    return {name: elsewhere.get(name.rpartition(".")[2], place) for name, place in places.items()}


def halved(model, places, tower):
    """The same, but the second half of a vision tower's blocks is on the second GPU."""
    prefix, part = f"model.{tower}", getattr(model.model, tower)
    blocks = next(name for name, inner in part.named_modules() if isinstance(inner, torch.nn.ModuleList))
    names = [name for name, _ in (*part.named_parameters(), *part.named_buffers()) if not name.startswith(blocks)]
    places = {name: place for name, place in places.items() if name != prefix}
    places |= {f"{prefix}.{name.rpartition('.')[0] or name}": "cuda:0" for name in names}
    number = len(part.get_submodule(blocks))
    return places | {f"{prefix}.{blocks}.{i}": f"cuda:{int(i >= number // 2)}" for i in range(number)}


def dispatched(model, places, **options):
    """The model, moved; on the machine it is used on, too."""
    with Machine():
        return dispatch_model(model, places, skip_keys=model._skip_keys_device_placement, **options)


@contextlib.contextmanager
def on_gpus(inputs, device="cuda:0"):
    """The inputs of a model, on a device of a machine that is entered."""
    with Machine(), torch.no_grad():
        yield {name: x.to(device) for name, x in inputs.items()}


def on_cpu(x):
    """The values of a tensor, wherever it is."""
    return getattr(x, "held", x)
