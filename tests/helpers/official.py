"""Objects as the official code pickles them."""

from torch_utils import persistence


class Written:
    """Pickles as the official code does: a call of one function, found by its name, with a dict."""

    def __init__(self, meta):
        self.meta = meta

    def __reduce__(self):
        return persistence._reconstruct_persistent_obj, (self.meta,)


def official(attributes: dict, class_name: str = "Layer", version: int = 6) -> Written:
    state = {"_parameters": {}, "_buffers": {}, "_modules": {}, "_init_args": (), "_init_kwargs": {}, **attributes}
    meta = {"type": "class", "version": version, "module_src": "# source", "class_name": class_name, "state": state}
    return Written(meta)
