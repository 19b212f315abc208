@echo off
rem Makes .venv with vellumd and an engine for this machine. Needs Python 3.11 or newer.
rem Beside a checkout of vellumd that is installed, elsewhere the released one.
setlocal
cd /d "%~dp0..\.."
set "PYTHON=python"
where py >nul 2>nul && set "PYTHON=py -3"
%PYTHON% -c "import sys; sys.exit(sys.version_info < (3, 11))"
if errorlevel 1 (
    echo vellumd needs Python 3.11 or newer: https://www.python.org/downloads/
    goto failed
)
if not exist .venv\Scripts\python.exe %PYTHON% -m venv .venv
if errorlevel 1 goto failed
set "PIP=.venv\Scripts\python.exe -m pip install --disable-pip-version-check"
if exist pyproject.toml (set "SOURCE=-e .") else (set "SOURCE=vellumd")
%PIP% %SOURCE%
if errorlevel 1 goto failed
.venv\Scripts\python.exe -m vellumd.cli.setup_torch
if errorlevel 1 goto failed
if exist pyproject.toml (set "SOURCE=-e .[engine]") else (set "SOURCE=vellumd[engine]")
%PIP% %SOURCE%
if errorlevel 1 goto failed
echo Done. Start it with config\windows\run.bat
exit /b 0

:failed
echo Setup did not finish; the lines above say why.
if not defined UNATTENDED pause
exit /b 1
