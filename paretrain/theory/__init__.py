"""When does combining tasks help? The asymptotic error of linear multi-task learning, in numpy and scipy alone.

`asymptotics` predicts the error of coupled linear models; `coupling` estimates from data how to couple them.
README.md beside this file numbers the equations that the docstrings cite.
"""
