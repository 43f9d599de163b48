"""One thread a worker: the tests run two workers on two cores, and threads that wait for each other are slower."""

import torch

torch.set_num_threads(1)
