"""A pod planned without the pod: memory and step time of the real train step, compiled here.

`llama-jax plan llama3_1_8b --topology v6e:16x16` compiles for devices that are not there and says
what each would hold, do and send. Read `cost.py` for how seconds are made of that.
"""
