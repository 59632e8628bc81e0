"""Studies: simulations and experiments that a reader can run anew, each with a page of figures."""
