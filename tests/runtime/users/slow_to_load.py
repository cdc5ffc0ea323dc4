import sys
import time

sys.stderr.write("loading begins\n")
sys.stderr.flush()
time.sleep(60)
