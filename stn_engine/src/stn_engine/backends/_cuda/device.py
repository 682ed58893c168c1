from stn_engine.backends._cuda.launcher import Launcher
class DeviceLauncher:
    def reasons_against(self, device): return ("todo",)
