@echo off
rem The predecessor's worker polled the queue server beside its own server. vellumd does both
rem in one program, so this starts it only if none runs yet on this data folder.
rem A server's address can follow: start_worker.bat http://queue.lan:8000
setlocal
cd /d "%~dp0..\.."
if not exist .venv\Scripts\vellumd.exe (
    echo vellumd is not installed here: run config\windows\setup.bat first.
    if not defined UNATTENDED pause
    exit /b 1
)
.venv\Scripts\vellumd.exe jobs --config config\vellumd.toml --store.dir data >nul 2>nul
if not errorlevel 1 (
    echo vellumd runs already, and it polls the queue server by itself if config\vellumd.toml
    echo has a section [plugins.queue]: there is nothing to start.
    if not defined UNATTENDED pause
    exit /b 0
)
set "QUEUE="
if not "%~1"=="" set "QUEUE=--plugins.queue.url %~1"
.venv\Scripts\vellumd.exe serve --config config\vellumd.toml --store.dir data %QUEUE%
set "CODE=%ERRORLEVEL%"
if %CODE% neq 0 if not defined UNATTENDED pause
exit /b %CODE%
