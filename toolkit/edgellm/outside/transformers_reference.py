"""Answers with a model's numbers in float32, computed by transformers. Run by path, with edgellm not installed.

    python transformers_reference.py DIRECTORY CLASS N_THREADS logits|states

A first line on stdin is answered by 256 bytes: JSON with versions, n_vocab and n_columns, and spaces. Then, for each
line `{"ids": [...], "n_last": n}`, rows of the last n positions, (n, n_columns) little-endian float32: logits, or the
last states of the model without its head.
Only classes of transformers itself and safetensors files are used; no code of the repository is run.
"""

import json
import sys
from typing import Any


def main() -> None:
    directory, class_name, n_threads, wanted = sys.argv[1:5]
    import torch
    import transformers

    torch.set_num_threads(int(n_threads))
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    model, missing = load(getattr(transformers, class_name), directory, torch.float32)
    if wanted == "states":
        model = without_head(model, missing)
        n_vocab = model.get_input_embeddings().weight.shape[0]
        n_columns = model.config.hidden_size
    else:
        n_vocab = n_columns = model.get_output_embeddings().weight.shape[0]
    out = sys.stdout.buffer
    hello = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "n_vocab": n_vocab,
        "n_columns": n_columns,
    }
    sys.stdin.buffer.readline()
    out.write(json.dumps(hello).ljust(255).encode() + b"\n")
    out.flush()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        ids = torch.tensor([question["ids"]])
        mask = torch.ones_like(ids)
        if wanted == "states":
            rows = model(ids, attention_mask=mask).last_hidden_state[0]
        else:
            rows = model(ids, attention_mask=mask, use_cache=False).logits[0]
        last = rows[-question["n_last"] :].float().contiguous()
        out.write(last.numpy().astype("<f4").tobytes())
        out.flush()


def load(cls: Any, directory: str, dtype: Any) -> tuple[Any, list[str]]:
    """The model, and the names of weights that its files do not have."""
    options = {
        "use_safetensors": True,
        "local_files_only": True,
        "attn_implementation": "eager",
        "output_loading_info": True,
    }
    try:
        model, info = cls.from_pretrained(directory, dtype=dtype, **options)
    except TypeError:  # older versions
        model, info = cls.from_pretrained(directory, torch_dtype=dtype, **options)
    model.train(False)
    return model, info["missing_keys"]


def without_head(model: Any, missing: list[str]) -> Any:
    """The model below its head; its weights must all be there, since transformers draws others at random."""
    base = model.base_model
    prefix = f"{model.base_model_prefix}."
    own = {name for name, _ in base.named_parameters() if not name.startswith("pooler.")}
    absent = sorted(own & {name.removeprefix(prefix) for name in missing})
    if absent:
        raise SystemExit(f"the files have no {absent[0]}, which {type(model).__name__} of transformers needs")
    return base


if __name__ == "__main__":
    main()
