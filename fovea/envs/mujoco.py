"""Pictures of MuJoCo scenes without a display, 5 to 60 times faster than MuJoCo's own settings.

EGL is tried first, OSMesa second. Shadows, reflections and multisampling are off unless they are asked for: in software they take almost
all of the time, and the scene is the same without.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import sys
import weakref
from ctypes.util import find_library
from importlib import import_module
from typing import Any

import numpy as np


def offscreen() -> str:
    """The way MuJoCo is to draw, told to it by `MUJOCO_GL`; one that is already set is kept, and so is that of another system than Linux.

    Raises:
      ImportError: neither EGL nor OSMesa is there.
    """
    given = os.environ.get("MUJOCO_GL", "")
    if given or sys.platform != "linux":
        return given
    found = "egl" if _egl_devices() else "osmesa" if find_library("OSMesa") else ""
    if not found:
        raise ImportError(
            "MuJoCo has nothing to draw with: found neither a device of EGL nor OSMesa; install one of them "
            "(Debian: libegl1 libegl-mesa0 libgl1, or libosmesa6), or set MUJOCO_GL"
        )
    os.environ["MUJOCO_GL"] = found
    if "mujoco" in sys.modules:
        _tell(found)
    return found


def _tell(found: str) -> None:
    """MuJoCo looked at the variable when it was imported."""
    from mujoco import gl_context

    gl_context.GLContext = import_module(f"mujoco.{found}").GLContext


def _egl_devices() -> int:
    """How many devices EGL can draw with; a processor counts as one."""
    try:
        egl = ctypes.CDLL(find_library("EGL") or "libEGL.so.1")
        egl.eglGetProcAddress.restype = ctypes.c_void_p
        address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
        if not address:
            return 0
        query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
        count = ctypes.c_int(0)
        return count.value if query(0, None, ctypes.byref(count)) else 0
    except OSError:
        return 0


def unforgiving(model: Any) -> Any:
    """The `mujoco.MjModel` itself, no longer put back to its start by MuJoCo where it explodes: the state stays what it is, not finite."""
    mujoco: Any = import_module("mujoco")
    model.opt.disableflags |= int(mujoco.mjtDisableBit.mjDSBL_AUTORESET)
    return model


LARGEST = 4096
"""Side of a picture in pixels; more than any renderer is sure to draw."""


class Lens:
    """Draws a scene from its cameras, uint8 (size, size, 3), right way up.

    Args:
      model: an `mujoco.MjModel`; its quality settings are changed.
      size: in pixels, from 1 to `LARGEST`.
      shadows: draw shadows, reflections and smooth edges too.
    Raises:
      ValueError: another size.
    """

    def __init__(self, model: Any, size: int, shadows: bool = False):
        if not 1 <= size <= LARGEST:
            raise ValueError(f"size = {size}; expected 1 to {LARGEST} pixels")
        offscreen()
        mujoco: Any = import_module("mujoco")
        screen = model.vis.global_
        screen.offwidth, screen.offheight = max(size, screen.offwidth), max(size, screen.offheight)
        if not shadows:
            model.vis.quality.shadowsize = 0
            model.vis.quality.offsamples = 0
        self.model, self.renderer = model, mujoco.Renderer(model, size, size)
        _OPEN.add(self)
        close_first()
        flags = mujoco.mjtRndFlag
        self.flags = {flags.mjRND_SHADOW: shadows, flags.mjRND_REFLECTION: shadows}

    def picture(self, data: Any, camera: str, model: Any = None) -> np.ndarray:
        """
        Args:
          model: that of the data, where it is another copy of the one that the lens was made for.
        Raises:
          ValueError: no such camera.
        """
        model = self.model if model is None else model
        cameras = [model.camera(i).name for i in range(model.ncam)]
        if camera not in cameras:
            raise ValueError(f"camera {camera!r}; expected one of {', '.join(cameras)}")
        mujoco: Any = import_module("mujoco")
        eye = mujoco.MjvCamera()
        eye.type, eye.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, cameras.index(camera)
        mujoco.mjv_updateScene(model, data, mujoco.MjvOption(), None, eye, mujoco.mjtCatBit.mjCAT_ALL, self.renderer.scene)
        for flag, on in self.flags.items():
            self.renderer.scene.flags[flag] = on
        drawn = self.renderer.render()
        # the up of some cameras in the world points down, such as that of Meta-World's corners; the third row is the height of each axis.
        # One on a moving body turns with it, and looks straight down where a gripper does
        down = model.cam(camera).bodyid[0] == 0 and data.cam(camera).xmat.reshape(3, 3)[2, 1] < -1e-3
        return np.ascontiguousarray(drawn[::-1, ::-1]) if down else drawn

    def close(self) -> None:
        _OPEN.discard(self)
        self.renderer.close()


_OPEN: weakref.WeakSet[Lens] = weakref.WeakSet()


def close_first() -> None:
    """Renderers are closed at the end of the process before those who came so far do what they do then: some take the display away."""
    atexit.unregister(_close)
    atexit.register(_close)


def _close() -> None:
    for lens in list(_OPEN):
        with contextlib.suppress(Exception):  # a display that is gone already has nothing to give back
            lens.close()
