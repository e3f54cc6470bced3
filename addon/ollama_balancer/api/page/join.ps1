# Adds this Ollama host to the fleet of the balancer at @BALANCER@:
#
#   & ([scriptblock]::Create((irm @BALANCER@/join.ps1))) CODE
#
# CODE comes from `ollama-balancer join-code` and lets one host join. Run it again, without a code, to upgrade. Options of
# ollama-agent-reporter, such as --name, may follow the code, or an empty one: ''. Without options, those of the last time
# are used, which are in the file `options` there.
#
# 1. It makes a virtual environment in %LOCALAPPDATA%\ollama-agent-reporter ($env:OLLAMA_REPORTER_HOME: elsewhere).
# 2. It installs the balancer's own reporter there, and what that needs from the host's package index.
# 3. It gets this host a key that may only report, and keeps it in the file `key` there, in the user's profile.
# 4. It installs the reporter as a scheduled task, for which it takes a terminal opened as administrator
#    ($env:OLLAMA_REPORTER_SERVICE = 'no': it runs it instead).
#
# The last line begins it, so that a download that is cut off does nothing. Python runs with -I: it must not import what
# somebody has put into the folder that this is run in.
function Join-Fleet {
    $Code = ''
    if ($args.Count) { $Code = [string] $args[0] }
    $Options = @($args | Select-Object -Skip 1)
    $ErrorActionPreference = 'Stop'
    $ProgressPreference = 'SilentlyContinue'
    $Balancer = '@BALANCER@'
    $Wheel = '@WHEEL@'
    $Sha256 = '@SHA256@'

    if ($Code -and -not $Code.StartsWith('join_')) {
        throw "This is no join code: it begins with join_, and 'ollama-balancer join-code' makes one."
    }
    $Python = $null
    $Check = 'import sys; sys.exit(sys.version_info < (3, 10))'
    foreach ($Candidate in @($env:PYTHON, 'py', 'python', 'python3')) {
        if (-not $Candidate -or -not (Get-Command $Candidate -ErrorAction SilentlyContinue)) { continue }
        & $Candidate -I -c $Check
        if ($LASTEXITCODE -eq 0) { $Python = $Candidate; break }
    }
    if (-not $Python) {
        throw 'This needs Python 3.10 or newer, and found none: winget install Python.Python.3.13, or set PYTHON to where it is.'
    }

    $Folder = Join-Path $env:LOCALAPPDATA 'ollama-agent-reporter'
    if ($env:OLLAMA_REPORTER_HOME) { $Folder = $env:OLLAMA_REPORTER_HOME }
    New-Item -ItemType Directory -Force -Path $Folder | Out-Null
    $Venv = Join-Path $Folder 'venv'
    $Own = Join-Path $Venv 'Scripts\python.exe'
    # A running task holds its files.
    Stop-ScheduledTask -TaskName 'ollama-agent-reporter' -ErrorAction SilentlyContinue
    $Again = Test-Path $Own
    if (-not $Again) {
        & $Python -I -m venv --clear $Venv
        if ($LASTEXITCODE -ne 0) { throw 'The virtual environment cannot be made.' }
    }

    $File = Join-Path $Folder $Wheel
    Invoke-WebRequest -UseBasicParsing -Uri "$Balancer/join/$Wheel" -OutFile $File
    try {
        if ((Get-FileHash -Algorithm SHA256 -Path $File).Hash -ne $Sha256) {
            throw "$Balancer/join/$Wheel has another SHA-256 than this script says: get the script again."
        }
        $Extra = ''
        if (Get-Command nvidia-smi -ErrorAction SilentlyContinue) { $Extra = '[gpu]' }
        if ($Again) { & $Own -I -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps $File }
        & $Own -I -m pip install --quiet --disable-pip-version-check --upgrade "$File$Extra"
        if ($LASTEXITCODE -ne 0) { throw 'The reporter cannot be installed.' }
    } finally {
        Remove-Item -Force $File
    }

    $Kept = Join-Path $Folder 'options'
    if (-not $Options.Count) {
        if (Test-Path $Kept) {
            $Options = @(Get-Content -Path $Kept -Encoding UTF8)
            Write-Host "join: with the options in ${Kept}: $Options"
        }
    } elseif ($Options -notcontains '--once') {
        Set-Content -Path $Kept -Value $Options -Encoding UTF8
    }
    $Arguments = @('-I', '-m', 'agent_reporter', '--balancer', $Balancer, '--join', (Join-Path $Folder 'key')) + $Options
    if ($env:OLLAMA_REPORTER_SERVICE -ne 'no') { $Arguments += @('--install', '--yes') }
    $env:OLLAMA_BALANCER_JOIN_CODE = $Code
    try {
        & $Own @Arguments
        if ($LASTEXITCODE -ne 0) { throw 'This host has not joined: see above.' }
    } finally {
        Remove-Item Env:OLLAMA_BALANCER_JOIN_CODE
    }
}

Join-Fleet @args
