"""Answers with a model's logits in float32, computed by transformers. Run by path, with edgellm not installed.

    python transformers_reference.py DIRECTORY CLASS N_THREADS

A first line on stdin is answered by 256 bytes: JSON with versions and n_vocab, and spaces. Then, for each line
`{"ids": [...], "n_last": n}`, the logits of the last n positions, (n, n_vocab) little-endian float32.
Only classes of transformers itself and safetensors files are used; no code of the repository is run.
"""

import json
import sys


def main() -> None:
    directory, class_name, n_threads = sys.argv[1:4]
    import torch
    import transformers

    torch.set_num_threads(int(n_threads))
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    cls = getattr(transformers, class_name)
    options = {"use_safetensors": True, "local_files_only": True, "attn_implementation": "eager"}
    try:
        model = cls.from_pretrained(directory, dtype=torch.float32, **options)
    except TypeError:  # older versions
        model = cls.from_pretrained(directory, torch_dtype=torch.float32, **options)
    model.train(False)
    out = sys.stdout.buffer
    hello = {
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "n_vocab": model.get_output_embeddings().weight.shape[0],
    }
    sys.stdin.buffer.readline()
    out.write(json.dumps(hello).ljust(255).encode() + b"\n")
    out.flush()
    for line in sys.stdin.buffer:
        question = json.loads(line)
        ids = torch.tensor([question["ids"]])
        logits = model(ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
        last = logits[-question["n_last"] :].float().contiguous()
        out.write(last.numpy().astype("<f4").tobytes())
        out.flush()


main()
