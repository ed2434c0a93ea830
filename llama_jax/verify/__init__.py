"""`llama-jax verify`: whether weights, as this library reads them, are the model they should be.

read            facts.py, said.py     what is in the file, and what it says of itself
rope            rope.py               angles against the formula in float64
three ways      consistency.py        training, prefill and decode give the same numbers
text            layout.py             the text is predicted, and q/k are not the other way round
transformers    reference.py          the same file opened there, logit by logit

On a first reading go to `verify` in checks.py.
"""
