"""Files of other worlds to our parameters and back.

config.json, *.safetensors    huggingface.py ──┐
*.gguf                        gguf.py ─────────┼── source.py: names, shapes, one tensor at a time
params.json, *.pth            meta.py ─────────┘
                                               names.py: which tensor is which weight, turned how
                                               read.py: into the shards, layer by layer
run.json, checkpoints/        run.py

On a first reading go to checkpoint.py, which opens any of them, and to convert.py.
"""
