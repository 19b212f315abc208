@echo off
rem Runs vellumd in this window until Ctrl+C, with config\vellumd.toml and the data in data.
rem Settings can follow: run.bat --plugins.http.port 8201
setlocal
cd /d "%~dp0..\.."
if not exist .venv\Scripts\vellumd.exe (
    echo vellumd is not installed here: run config\windows\setup.bat first.
    if not defined UNATTENDED pause
    exit /b 1
)
.venv\Scripts\vellumd.exe serve --config config\vellumd.toml --store.dir data %*
set "CODE=%ERRORLEVEL%"
if %CODE% neq 0 if not defined UNATTENDED pause
exit /b %CODE%
