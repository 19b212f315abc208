@echo off
rem The predecessor's name for run.bat, which runs vellumd in this window until Ctrl+C.
rem Jobs come over HTTP, and from the queue server if config\vellumd.toml has [plugins.queue].
rem Settings can follow: start_server.bat --plugins.http.port 8201
call "%~dp0run.bat" %*
exit /b %ERRORLEVEL%
