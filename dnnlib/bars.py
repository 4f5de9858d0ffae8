"""tqdm's progress bars with a lock of their own.

tqdm's default lock is one of multiprocessing, too, which fixes the start method for the whole program: whoever builds a
data set could not choose `spawn` afterwards. No bar here is shared between processes.
"""

import threading

import tqdm as original


class tqdm(original.tqdm):
    """`tqdm.tqdm`, locked between threads only."""


tqdm.set_lock(threading.RLock())
