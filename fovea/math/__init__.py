"""The mathematics as pure functions: tensors in, tensors out, formula and paper in each docstring.

A policy-gradient method is five independent choices, each in its own file: advantage (`advantages`), importance ratio (`ratios`), clip
rule (`surrogates`), aggregation (`aggregate`) and KL (`kl`). None of them reduces; only `aggregate` sums.
"""
