"""Work that goes on until it is killed."""

import time

if __name__ == "__main__":
    time.sleep(60)
