//! Running other programs: the command line is in every error, nothing outlives its deadline, and
//! Ctrl-C ends the child before it ends us.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    fs::File,
    io::{BufRead as _, BufReader, ErrorKind, Read, Write as _},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use crate::interrupt;

/// How long a command that only asks or sets something may take.
const DEFAULT_DEADLINE: Duration = Duration::from_mins(1);

/// How long a child may take to clean up after itself once it has been told to stop.
const STOP_WITHIN: Duration = Duration::from_mins(1);

/// How long to wait for the rest of a child's output: a grandchild may keep the pipe open for ever.
const DRAIN_WITHIN: Duration = Duration::from_secs(2);

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A command line with everything that belongs to it.
#[derive(Debug, Clone)]
pub struct Cmd {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    input: Option<Vec<u8>>,
    deadline: Option<Duration>,
    interruptible: bool,
}

impl Cmd {
    /// A command without arguments, with a deadline of a minute.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            envs: Vec::new(),
            directory: None,
            input: None,
            deadline: Some(DEFAULT_DEADLINE),
            interruptible: true,
        }
    }

    /// Runs another program with all that was said about this one.
    #[must_use]
    pub fn program(mut self, program: impl AsRef<OsStr>) -> Self {
        program.as_ref().clone_into(&mut self.program);
        self
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Takes a variable out of the environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), None));
        self
    }

    /// Runs it in this directory.
    #[must_use]
    pub fn directory(mut self, directory: impl AsRef<Path>) -> Self {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Gives it this on standard input; otherwise it has none.
    #[must_use]
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Ends it after this long.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Lets it take as long as it needs: compilers do.
    #[must_use]
    pub fn no_deadline(mut self) -> Self {
        self.deadline = None;
        self
    }

    /// Runs it even after Ctrl-C: cleaning up is what Ctrl-C is for.
    #[must_use]
    pub fn even_if_interrupted(mut self) -> Self {
        self.interruptible = false;
        self
    }

    /// Puts another command line in front of this one, which becomes its arguments (`nsenter` …).
    #[must_use]
    pub fn behind<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(
        mut self,
        program: impl AsRef<OsStr>,
        args: I,
    ) -> Self {
        let inner = std::mem::replace(&mut self.program, program.as_ref().to_owned());
        let rest = std::mem::take(&mut self.args);
        self.args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        self.args.push(inner);
        self.args.extend(rest);
        self
    }

    /// The same as a [`Command`], for `exec` and for long-lived children.
    ///
    /// The child gets its own process group, so that a terminal's Ctrl-C reaches only us and the
    /// order in which things end is ours.
    pub fn to_std(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null());
        for (name, value) in &self.envs {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command
    }

    /// Starts it with both outputs going to a file, and returns without waiting.
    pub fn spawn_to(&self, log: &File) -> Result<Child> {
        let clone =
            || log.try_clone().with_context(|| format!("cannot share the log file of `{self}`"));
        self.to_std()
            .process_group(0)
            .stdout(clone()?)
            .stderr(clone()?)
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))
    }

    /// Runs it, and fails unless it succeeds.
    pub fn run(&self) -> Result<Output> {
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{self}` failed ({}){}", output.status, said(&output.stderr, &output.stdout));
        }
        Ok(output)
    }

    /// Runs it, fails unless it succeeds, and returns what it printed, without the last newline.
    pub fn read(&self) -> Result<String> {
        let mut stdout = self.run()?.stdout;
        stdout.truncate(stdout.trim_end().len());
        Ok(stdout)
    }

    /// Runs it whatever its exit code; fails only when it cannot be run or does not end.
    pub fn output(&self) -> Result<Output> {
        let mut command = self.to_std();
        if self.input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command
            .process_group(0)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input.clone()) {
            // A child that ends without reading it all says so by its exit code, not by our EPIPE.
            thread::spawn(move || pipe.write_all(&input).ok());
        }
        let stdout = collect(child.stdout.take());
        let stderr = collect(child.stderr.take());
        let status = self.wait(&mut child)?;
        Ok(Output { status, stdout: stdout.text(), stderr: stderr.text() })
    }

    /// Runs it with our own outputs, for people to watch, and fails unless it succeeds.
    pub fn stream(&self) -> Result<()> {
        let mut child = self
            .to_std()
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))?;
        let status = self.wait(&mut child)?;
        if !status.success() {
            bail!("`{self}` failed ({status})");
        }
        Ok(())
    }

    /// Runs it showing every line as it comes; `each` sees the lines of standard output too.
    pub fn stream_lines(&self, mut each: impl FnMut(&str)) -> Result<ExitStatus> {
        let mut child = self
            .to_std()
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{self}`"))?;
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = child.stdout.take() {
            thread::spawn(move || {
                for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        break;
                    }
                }
            });
        }
        let status = self.wait_while(&mut child, || {
            while let Ok(line) = lines.try_recv() {
                println!("{line}");
                each(&line);
            }
        })?;
        while let Ok(line) = lines.recv_timeout(DRAIN_WITHIN) {
            println!("{line}");
            each(&line);
        }
        Ok(status)
    }

    fn wait(&self, child: &mut Child) -> Result<ExitStatus> {
        self.wait_while(child, || {})
    }

    fn wait_while(&self, child: &mut Child, mut meanwhile: impl FnMut()) -> Result<ExitStatus> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            meanwhile();
            let status = child.try_wait().with_context(|| format!("cannot wait for `{self}`"))?;
            if let Some(status) = status {
                return Ok(status);
            }
            if self.interruptible && interrupt::received() {
                end_group(child, STOP_WITHIN);
                return Err(anyhow!(interrupt::Interrupted).context(format!("during `{self}`")));
            }
            if let Some(deadline) = self.deadline
                && start.elapsed() > deadline
            {
                end_group(child, STOP_WITHIN.min(deadline));
                bail!("`{self}` did not end within {} s", deadline.as_secs());
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }
}

impl fmt::Display for Cmd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.program.to_string_lossy())?;
        for arg in &self.args {
            let arg = arg.to_string_lossy();
            if arg.is_empty() || arg.contains([' ', '"', '\'', '$', '\n', '{']) {
                write!(formatter, " '{}'", arg.replace('\'', "'\\''"))?;
            } else {
                write!(formatter, " {arg}")?;
            }
        }
        Ok(())
    }
}

/// Asks a child's whole process group to end, and makes it when it does not.
///
/// The child alone is not enough: cargo ends at once, while the test it runs still cleans up.
pub fn end_group(child: &mut Child, within: Duration) {
    let Ok(pid) = i32::try_from(child.id()) else {
        return;
    };
    let group = Pid::from_raw(pid);
    for signal in [Some(Signal::SIGTERM), Some(Signal::SIGKILL)] {
        let mut result = killpg(group, signal);
        let start = Instant::now();
        while start.elapsed() < within {
            // A zombie still counts as a member: the child has to be reaped first.
            let reaped = !matches!(child.try_wait(), Ok(None));
            if reaped && result == Err(Errno::ESRCH) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
            result = killpg(group, None);
        }
    }
}

/// What comes out of a pipe, while it comes.
struct Collected {
    bytes: Arc<Mutex<Vec<u8>>>,
    ended: Receiver<()>,
}

impl Collected {
    /// All of it; where somebody keeps the pipe open, what has come by now. That may be a grandchild, and for a moment it is
    /// any child that another thread is about to start.
    fn text(&self) -> String {
        self.ended.recv_timeout(DRAIN_WITHIN).ok();
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collected {
    let (sender, ended) = mpsc::channel();
    let bytes = Arc::new(Mutex::new(Vec::new()));
    let collected = Collected { bytes: Arc::clone(&bytes), ended };
    thread::spawn(move || {
        let add = |some: &[u8]| {
            bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(some);
        };
        let mut some = vec![0; 1 << 16];
        if let Some(mut pipe) = pipe {
            loop {
                match pipe.read(&mut some) {
                    Ok(0) => break,
                    Ok(length) => add(&some[..length]),
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => {
                        add(format!("\n(output cut: {error})").as_bytes());
                        break;
                    }
                }
            }
        }
        // Nobody listens any more when the command was ended at its deadline.
        sender.send(()).ok();
    });
    collected
}

fn said(stderr: &str, stdout: &str) -> String {
    let text = if stderr.trim().is_empty() { stdout.trim() } else { stderr.trim() };
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = Cmd::new("sh")
            .args(["-c", "echo no such thing >&2; exit 3"])
            .run()
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "`sh -c 'echo no such thing >&2; exit 3'` failed (exit status: 3): no such thing"
        );
    }

    #[test]
    fn a_deadline_ends_the_whole_group() {
        let error = Cmd::new("sh")
            .args(["-c", "sleep 1000 & wait"])
            .deadline(Duration::from_millis(50))
            .run()
            .unwrap_err()
            .to_string();
        assert!(error.contains("did not end within"), "{error}");
    }

    #[test]
    fn what_was_said_is_there_though_somebody_keeps_the_pipe_open() {
        let output = Cmd::new("sh").args(["-c", "echo hello; sleep 5 &"]).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_str()), (Some(0), "hello\n"));
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(Cmd::new("cat").input("hello\n").read().unwrap(), "hello");
    }

    #[test]
    fn a_wrapper_goes_in_front() {
        let wrapped = Cmd::new("ip").args(["link", "show"]).behind("nsenter", ["--net=x"]);
        assert_eq!(wrapped.to_string(), "nsenter --net=x ip link show");
    }

    #[test]
    fn the_tail_is_the_end() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
    }
}
