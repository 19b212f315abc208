@echo off
rem Starts vellumd at every logon of this user, as a task of Windows' scheduler.
rem install_task.bat remove takes it away again.
setlocal
cd /d "%~dp0..\.."
if /i "%~1"=="remove" goto remove
schtasks /Create /TN vellumd /SC ONLOGON /F /TR "cmd /c set UNATTENDED=1&& call \"%CD%\config\windows\run.bat\""
if errorlevel 1 (
    echo The task was not made; the line above says why.
    if not defined UNATTENDED pause
    exit /b 1
)
echo vellumd starts at the next logon. To start it now: schtasks /Run /TN vellumd
exit /b 0

:remove
schtasks /Delete /TN vellumd /F
exit /b %ERRORLEVEL%
