"""The balancer in the training loops of others. No module here imports the framework that it is for."""
