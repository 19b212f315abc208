@echo off
rem The predecessor's name for it: runs vellumd in this window until Ctrl+C.
rem Jobs come over HTTP, and from the queue server if config\vellumd.toml has [plugins.queue].
rem Settings can follow: start_server.bat --plugins.http.port 8201
setlocal
cd /d "%~dp0..\.."
if not exist .venv\Scripts\vellumd.exe (
    echo vellumd is not installed here: run config\windows\setup.bat first.
    if not defined VELLUMD_UNATTENDED pause
    exit /b 1
)
.venv\Scripts\vellumd.exe serve --config config\vellumd.toml --store.dir data %*
set "CODE=%ERRORLEVEL%"
if %CODE% neq 0 if not defined VELLUMD_UNATTENDED pause
exit /b %CODE%
