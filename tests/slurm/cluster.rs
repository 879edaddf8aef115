//! A Slurm cluster of three virtual nodes on this machine, gone with the test: munged, slurmctld and a slurmd for each
//! node, in a folder and on ports of their own. Needs root, as slurmd does.

use anyhow::{Context, Result, ensure};
use causeway_tests::{Process, wait_for};
use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// The nodes.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];

/// A running cluster.
pub struct Cluster {
    folder: TempDir,
    nodes: Vec<(String, Process)>,
    _controller: Process,
    _munged: Process,
}

/// A job as squeue shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    pub id: u64,
    pub state: String,
    pub node: String,
    pub name: String,
}

impl Cluster {
    /// Starts the cluster and waits until its nodes are idle.
    pub async fn start() -> Result<Cluster> {
        let folder = tempfile::Builder::new().prefix("slurm").tempdir()?;
        let root = folder.path();
        for name in ["etc", "state", "log", "run", "spool/n1", "spool/n2", "spool/n3"] {
            fs::create_dir_all(root.join(name))?;
        }
        let key = root.join("etc/munge.key");
        let mut random = [0u8; 128];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut random)?;
        fs::write(&key, random)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        fs::write(root.join("etc/slurm.conf"), configuration(root)?)?;
        // GPUs that are none: any character device will do, and CUDA_VISIBLE_DEVICES is set as for real ones.
        let gpu = |file: &str| format!("NodeName=n[1-3] Name=gpu Type=fake File={file}\n");
        fs::write(root.join("etc/gres.conf"), gpu("/dev/null") + &gpu("/dev/zero"))?;

        let at = |name: &str| root.join(name).to_string_lossy().into_owned();
        let mut munged = Command::new("munged");
        // The folder of tests may be below one that others can write to.
        munged.args([
            "--foreground",
            "--force",
            "--num-threads=2",
            &format!("--key-file={}", at("etc/munge.key")),
        ]);
        munged.args([
            format!("--socket={}", at("run/munge.sock")),
            format!("--pid-file={}", at("run/munged.pid")),
        ]);
        munged.args([
            format!("--log-file={}", at("log/munged.log")),
            format!("--seed-file={}", at("run/seed")),
        ]);
        let munged = Process::start(&mut munged, &root.join("log/munged.out"))
            .context("Slurm's tests need munge, slurmctld, slurmd and slurm-client")?;
        let socket = root.join("run/munge.sock");
        wait_for("munged", 20, || async { Ok(socket.exists().then_some(())) }).await?;
        let start = |program: &str, words: &[&str], log: &str| {
            let mut command = Command::new(program);
            command.args(words).env("SLURM_CONF", root.join("etc/slurm.conf"));
            Process::start(&mut command, &root.join("log").join(log))
        };
        let controller = start("slurmctld", &["-D", "-c"], "slurmctld.out")?;
        let nodes = NODES.map(|node| Ok((node.to_owned(), start("slurmd", &["-D", "-N", node], node)?)));
        let nodes = nodes.into_iter().collect::<Result<Vec<_>>>()?;
        let cluster = Cluster { folder, nodes, _controller: controller, _munged: munged };
        wait_for("three idle nodes", 60, || async {
            let states = cluster.call("sinfo", &["-h", "-N", "-o", "%T"]).unwrap_or_default();
            Ok((states.lines().filter(|state| *state == "idle").count() == 3).then_some(()))
        })
        .await?;
        Ok(cluster)
    }

    /// The cluster's configuration: what SLURM_CONF names.
    pub fn configuration(&self) -> PathBuf {
        self.folder.path().join("etc/slurm.conf")
    }

    /// Runs one of Slurm's commands.
    pub fn call(&self, program: &str, words: &[&str]) -> Result<String> {
        let output = Command::new(program).args(words).env("SLURM_CONF", self.configuration()).output()?;
        ensure!(output.status.success(), "{program} {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The jobs that have not ended.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let text = self.call("squeue", &["-h", "-o", "%A|%T|%N|%j"])?;
        let job = |line: &str| {
            let fields: Vec<&str> = line.split('|').collect();
            let [id, state, node, name] = fields[..] else { anyhow::bail!("squeue printed {line}") };
            let [state, node, name] = [state, node, name].map(str::to_owned);
            Ok(Job { id: id.parse()?, state, node, name })
        };
        text.lines().map(job).collect()
    }

    /// The highest id that any job has had.
    pub fn last_job(&self) -> Result<u64> {
        let ids = self.call("squeue", &["-h", "-t", "all", "-o", "%A"])?;
        Ok(ids.lines().filter_map(|id| id.parse().ok()).max().unwrap_or(0))
    }

    /// `kill -9` of a node: its slurmd, the keeper of its job, and everything that the job started.
    pub fn kill_node(&mut self, job: &Job) -> Result<()> {
        let (_, slurmd) =
            self.nodes.iter_mut().find(|(name, _)| *name == job.node).context("no such node")?;
        slurmd.kill()?;
        let keeper = format!("slurmstepd: [{}.batch]", job.id);
        let here = format!("SLURMD_NODENAME={}", job.node);
        let attempts = format!("/nodes/{}/", job.node);
        for pid in self.processes() {
            let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let in_job = read("environ").split(|byte| *byte == 0).any(|variable| variable == here.as_bytes());
            if line.starts_with(&keeper) || in_job || line.contains(&attempts) {
                // SAFETY: a process of this cluster's own node.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
        }
        Ok(())
    }

    /// Every process that has to do with this cluster: its folder stands in the environment or on the command line.
    fn processes(&self) -> Vec<i32> {
        let ours = self.folder.path().to_string_lossy().into_owned();
        let names = |pid: i32, name: &str| {
            let text = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            String::from_utf8_lossy(&text).contains(&ours)
        };
        let pids = fs::read_dir("/proc").into_iter().flatten();
        let pids = pids.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| *pid != std::process::id().cast_signed())
            .filter(|pid| names(*pid, "environ") || names(*pid, "cmdline"))
            .collect()
    }

    /// A folder for whatever the nodes share.
    pub fn shared(&self) -> PathBuf {
        self.folder.path().join("shared")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for pid in self.processes() {
            // SAFETY: a process of this cluster, found by the name of its folder.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let logs = fs::read_dir(self.shared().join("log")).into_iter().flatten().flatten();
        for log in logs {
            eprintln!("--- {}\n{}", log.path().display(), fs::read_to_string(log.path()).unwrap_or_default());
        }
    }
}

/// Ports that nothing listens on now.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let listeners: Vec<TcpListener> =
        (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<std::io::Result<_>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

fn configuration(root: &Path) -> Result<String> {
    let word = |program: &str, words: &[&str]| -> Result<String> {
        Ok(String::from_utf8(Command::new(program).args(words).output()?.stdout)?.trim().to_owned())
    };
    let (host, user) = (word("hostname", &[])?, word("id", &["-un"])?);
    let [controller, ports @ ..] = free_ports::<4>()?;
    let root = root.display();
    let mut text = format!(
        "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmUser={user}\n\
         SlurmdUser={user}\nAuthType=auth/munge\nAuthInfo=socket={root}/run/munge.sock\nCredType=cred/munge\n\
         StateSaveLocation={root}/state\nSlurmdSpoolDir={root}/spool/%n\nSlurmctldPidFile={root}/run/slurmctld.pid\n\
         SlurmdPidFile={root}/run/slurmd.%n.pid\nProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\n\
         MpiDefault=none\nSwitchType=switch/none\nReturnToService=2\nSelectType=select/cons_tres\n\
         SelectTypeParameters=CR_Core_Memory\nSchedulerType=sched/backfill\n\
         SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=0\n\
         AccountingStorageType=accounting_storage/none\nInactiveLimit=0\nKillWait=5\nMinJobAge=300\n\
         SlurmctldTimeout=30\nSlurmdTimeout=30\nGresTypes=gpu\nSlurmdParameters=config_overrides\nMailProg=/bin/true\n\
         PartitionName=all Nodes=n[1-3] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO\n"
    );
    for (node, port) in NODES.iter().zip(ports) {
        text += &format!(
            "NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=8000 \
             Gres=gpu:fake:2 State=UNKNOWN\n"
        );
    }
    Ok(text)
}
