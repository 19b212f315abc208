@echo off
rem Says what is wrong with this machine, the model or the configuration, if something is.
setlocal
cd /d "%~dp0..\.."
if not exist .venv\Scripts\vellumd.exe (
    echo vellumd is not installed here: run config\windows\setup.bat first.
    if not defined UNATTENDED pause
    exit /b 1
)
.venv\Scripts\vellumd.exe doctor --config config\vellumd.toml --store.dir data %*
set "CODE=%ERRORLEVEL%"
if not defined UNATTENDED pause
exit /b %CODE%
