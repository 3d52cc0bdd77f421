"""Sees at once when one process of several is gone, and ends the others with a line that says so.

Left alone, jax notices after more than a minute, waits as long again in its exit, or aborts with a
C++ trace. Here every process holds one TCP connection to process 0. The kernel closes it when a
process dies, however it dies, and its keepalive gives up on a machine that no longer answers; so
nothing has to be sent while all is well, and a process that is busy is never taken for dead.

Process 0 tells the others who was lost; that process 0 is lost each sees for itself.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jaxmm.config import RunError

# What a process that lost another one exits with: "try again later" (EX_TEMPFAIL of sysexits.h).
LOST = 75
# A machine that does not answer is given up after 5 + 3 * 4 seconds, well below the 30 promised and
# the 100 after which jax aborts.
_KEEPALIVE = {'TCP_KEEPIDLE': 5, 'TCP_KEEPINTVL': 3, 'TCP_KEEPCNT': 4, 'TCP_USER_TIMEOUT': 17_000}
_CONNECT_SECONDS = 30.0
# An error of our own may come a moment before the news of the process that caused it, and the
# error of another process before the same error of ours.
_NEWS_SECONDS = 3.0
_GRACE_SECONDS = 10.0

_current: Watch | None = None


class Watch:
  """The connection of one process to the others; `start` it once all are joined."""

  def __init__(
    self,
    index: int,
    count: int,
    exchange: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    resume: str,
    host: str | None = None,
  ):
    """Connects; returns when this process is watched.

    Args:
      index: of this process; `count`: of all.
      exchange: gives every process what process 0 gives it.
      resume: what the last line says to do.
      host: where process 0 can be reached, if that is known.

    Raises:
      RunError: process 0 cannot be reached, or not all processes came.
    """
    self.index, self.count, self.resume = index, count, resume
    self._peers: dict[int, socket.socket] = {}
    self._buffers: dict[int, bytes] = {}
    self._has_left: set[int] = set()
    self._lock = threading.Lock()
    self._status: int | None = None  # of an error of our own
    self._failure = ''  # of another process
    if index == 0:
      server = _listener()
      token = secrets.token_hex(16)
      exchange({'port': server.getsockname()[1], 'token': token, 'hosts': _own_names()})
      self._accept(server, token)
    else:
      where = exchange({})
      hosts = list(dict.fromkeys([host, *where['hosts']] if host else where['hosts']))
      self._peers[0] = self._connect(hosts, where['port'], where['token'])
    self._buffers = dict.fromkeys(self._peers, b'')

  def start(self) -> None:
    """Begins to watch, until the interpreter exits."""
    threading.Thread(target=self._listen, name='watch', daemon=True).start()
    atexit.register(self._leave)
    sys.excepthook = self._uncaught

  def fail(self, status: int, why: str) -> NoReturn:
    """Ends this process for a reason of its own, which was said here and is told to the others.

    They have some seconds to say the same of themselves. We stay until they are gone: our going
    would give them errors that are not theirs.
    """
    self._status = status
    self._tell({'kind': 'failed', 'process': self.index, 'why': why})
    _flush()
    _silence()
    deadline = time.monotonic() + _GRACE_SECONDS + 2
    while len(self._has_left) < len(self._peers) and time.monotonic() < deadline:
      time.sleep(0.02)
    self._drain()
    os._exit(status)

  def wait_for_news(self) -> None:
    """Returns if no other process was lost: an error of ours is then no consequence of that."""
    time.sleep(_NEWS_SECONDS)  # the thread that watches ends the process

  # Finding each other.

  def _accept(self, server: socket.socket, token: str) -> None:
    server.settimeout(_CONNECT_SECONDS)
    try:
      while len(self._peers) < self.count - 1:
        peer, _ = server.accept()
        process = _introduced(peer, token)
        if process is None:
          peer.close()
        else:
          self._peers[process] = peer
    except OSError as error:
      missing = sorted(set(range(1, self.count)) - set(self._peers))
      raise RunError(
        f'process 0 was not reached by {_named(missing)} in {_CONNECT_SECONDS:.0f} s; let them '
        'connect to any port of it (firewall), and start all again'
      ) from error
    finally:
      server.close()

  def _connect(self, hosts: Sequence[str], port: int, token: str) -> socket.socket:
    deadline, last = time.monotonic() + _CONNECT_SECONDS, None
    while time.monotonic() < deadline:
      for host in hosts:
        try:
          peer = socket.create_connection((host, port), timeout=5)
          _keep_alive(peer)
          _send(peer, {'token': token, 'process': self.index})
          _first_line(peer)  # it is process 0, and of this run
          peer.settimeout(None)
          return peer
        except (OSError, ValueError) as error:
          last = error
      time.sleep(0.2)
    raise RunError(
      f'process {self.index} cannot reach process 0 at {" or ".join(hosts)}, port {port} ({last}); '
      'let it connect to any port of that machine (firewall), and start all again'
    )

  # Watching.

  def _listen(self) -> None:
    selector = selectors.DefaultSelector()
    for process, peer in self._peers.items():
      selector.register(peer, selectors.EVENT_READ, process)
    while selector.get_map():
      for key, _ in selector.select():
        try:
          data = key.fileobj.recv(4096)
        except OSError:  # reset, or the keepalive gave up
          data = b''
        if not data:
          selector.unregister(key.fileobj)
          self._closed(key.data)
        self._buffers[key.data] += data
        *lines, self._buffers[key.data] = self._buffers[key.data].split(b'\n')
        for line in lines:
          self._heard(key.data, json.loads(line))

  def _closed(self, process: int) -> None:
    if self._status is not None and process == 0:
      os._exit(self._status)  # all is said; without process 0 jax is about to abort
    if self._status is None and process not in self._has_left:
      self._lost(process)
    self._has_left.add(process)

  def _heard(self, sender: int, news: Mapping[str, Any]) -> None:
    if news['kind'] == 'left':
      self._has_left.add(sender)
    elif news['kind'] == 'lost':
      self._lost(news['process'])
    elif news['kind'] == 'failed':
      if self.index == 0:
        self._has_left.add(sender)  # that its connection closes will say nothing new
        self._tell(news, but=sender)
      self._failure = f'process {news["process"]} of {self.count} failed: {news["why"]}'
      threading.Thread(target=self._failed_elsewhere, daemon=True).start()

  def _lost(self, process: int) -> NoReturn:
    if self.index == 0:
      self._tell({'kind': 'lost', 'process': process}, but=process)
    self._end(self._failure or f'process {process} of {self.count} was lost')

  def _failed_elsewhere(self) -> None:
    time.sleep(_GRACE_SECONDS)  # time to say the same of ourselves, and what it was here
    if self._status is None:
      self._end(self._failure)

  def _end(self, what: str) -> NoReturn:
    with self._lock:  # held to the end: there is one last line
      _flush()
      stderr = _silence()
      os.write(stderr, f'\njaxmm: {what}; {self.resume}\n'.encode())
      if self.index == 0:
        self._drain()
      # Without process 0 jax is about to abort: now or never.
      os._exit(LOST)

  def _tell(self, news: Mapping[str, Any], but: int | None = None) -> None:
    for process, peer in self._peers.items():
      if process != but:
        with contextlib.suppress(OSError):  # it is gone, too
          _send(peer, news)

  def _drain(self) -> None:
    """Lets what was told arrive: a connection that is closed with something unread is reset.

    Not for long: threads of jax may come to the loss themselves and abort.
    """
    for peer in self._peers.values():
      with contextlib.suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
    if self.count > 2:
      time.sleep(0.1)

  # Leaving.

  def _leave(self) -> None:
    """At exit: waits for the others as jax does, but watched, and says goodbye."""
    import jax

    try:
      jax.distributed.shutdown()
    except Exception as error:
      self._uncaught(type(error), error, error.__traceback__)
    self._tell({'kind': 'left'})
    deadline = time.monotonic() + _GRACE_SECONDS
    # Process 0 stays until the others know that it left on purpose.
    while self.index == 0 and len(self._has_left) < self.count - 1 and time.monotonic() < deadline:
      time.sleep(0.02)

  def _uncaught(self, kind, error, trace) -> None:
    self.wait_for_news()
    traceback.print_exception(kind, error, trace)
    self.fail(1, f'{kind.__name__}: {error}'[:500])


def start(resume: str, host: str | None = None) -> None:
  """Watches the processes that `jax.distributed` has joined; of one there is nothing to watch.

  Args:
    resume: what the last line of a process says to do when another one was lost.
    host: where process 0 can be reached, if that is known.

  Raises:
    RunError: the processes cannot reach each other.
  """
  global _current
  import jax

  if jax.process_count() > 1:
    _current = Watch(jax.process_index(), jax.process_count(), _from_first, resume, host)
    _current.start()


def wait_for_news() -> None:
  """Where an error came up among several processes: ends here if another one was lost."""
  if _current is not None:
    _current.wait_for_news()


def fail(status: int, why: str) -> None:
  """Ends this process, if it is one of several, without waiting for the others; they are told."""
  jax = sys.modules.get('jax')
  if _current is not None:
    _current.fail(status, why)
  elif jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
    _flush()
    os._exit(status)  # the others were lost, or could not be reached, before they were watched


def _from_first(news: Mapping[str, Any]) -> Mapping[str, Any]:
  """`news` of process 0, in all processes."""
  import numpy as np
  from jax.experimental import multihost_utils

  padded = np.frombuffer(json.dumps(news).encode().ljust(2048), np.uint8)
  try:
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(padded)))
  except RuntimeError as error:  # of jax, whatever lies below
    raise RunError(f'the processes were joined, but one was lost at once ({error})') from error


def _listener() -> socket.socket:
  if socket.has_dualstack_ipv6():
    return socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
  return socket.create_server(('', 0), backlog=1024)


def _own_names() -> list[str]:
  """Names and addresses of this machine that others may know it by, the likeliest first."""
  found = [socket.gethostname()]
  with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.connect(('192.0.2.1', 9))  # sends nothing; says which of our addresses leads outside
    found.insert(0, s.getsockname()[0])
  return [*found, 'localhost']


def _keep_alive(peer: socket.socket) -> None:
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEEPALIVE.items():
    if hasattr(socket, name):  # Linux has all of them
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(peer: socket.socket, news: Mapping[str, Any]) -> None:
  peer.sendall(json.dumps(news).encode() + b'\n')


def _first_line(peer: socket.socket) -> dict[str, Any]:
  line = b''
  while not line.endswith(b'\n'):
    byte = peer.recv(1)
    if not byte:
      raise ConnectionError('the connection was closed')
    line += byte
  return json.loads(line)


def _introduced(peer: socket.socket, token: str) -> int | None:
  """Which process it is, told that it is welcome; None for a stranger."""
  try:
    peer.settimeout(5)
    hello = _first_line(peer)
    if hello.get('token') != token:
      return None
    peer.sendall(b'{}\n')
    peer.settimeout(None)
    _keep_alive(peer)
    return hello['process']
  except (OSError, ValueError):
    return None


def _silence() -> int:
  """Leaves the threads of jax (C++) no stderr to write to; returns the real one."""
  stderr = os.dup(2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  return stderr


def _flush() -> None:
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(Exception):
      stream.flush()


def _named(processes: Sequence[int]) -> str:
  return f'process{"es" if len(processes) > 1 else ""} {", ".join(map(str, processes))}'
