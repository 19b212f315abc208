"""For authors of transports: the tests that every door has to pass, and what they run on.

Here is what needs pytest and nothing of a plugin's own tests. It is imported by tests
only; the daemon never does.
"""

from vellumd.testing.contract import Refused as Refused
from vellumd.testing.contract import Reply as Reply
from vellumd.testing.contract import TransportContract as TransportContract
from vellumd.testing.process import DaemonProcess as DaemonProcess
from vellumd.testing.process import free_port as free_port
