//! Scripts as text, and what squeue of Slurm 22.05 printed on a cluster of three nodes (`squeue.txt`).

use super::*;
use crate::launch::pilot::tests::args;
use clap::Parser;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: SlurmArgs,
}

/// A launcher with these options besides the folders.
pub fn slurm(options: &[&str]) -> Slurm {
    let words = ["slurm", "--work-dir", "/w", "--data", "/d"].iter().chain(options);
    let args = SlurmArgs { pilot: args(), ..Line::try_parse_from(words).unwrap().args };
    Slurm { args, prefix: "causeway-9f86d081-".to_owned(), server: "https://head:7411".to_owned() }
}

#[test]
fn a_pilots_script_says_everything_but_the_secret() {
    let words = [
        "--trainer=/scratch/me/bin/causeway-trainer",
        "--partition=gpu",
        "--account=lab",
        "--gres=gpu:a100:2",
        "--time=8:00:00",
        "--memory=64G",
        "--cpus=16",
        "--setup=module load cuda",
    ];
    let words = ["slurm", "--work-dir=/scratch/me/causeway", "--data=/scratch/me/data"].iter().chain(&words);
    let example = Slurm { args: Line::try_parse_from(words).unwrap().args, ..slurm(&[]) };
    assert_eq!(example.script(0, &[]).unwrap(), include_str!("../../../../docker/slurm/pilot.sbatch"));
    let other = slurm(&["--sbatch=--constraint=a100|h100", "--qos=high"])
        .script(3, &["n1".to_owned(), "n2".to_owned()])
        .unwrap();
    for line in [
        "#SBATCH --job-name=causeway-9f86d081-3",
        "#SBATCH --qos=high",
        "#SBATCH --exclude=n1,n2",
        "#SBATCH --constraint=a100|h100",
    ] {
        assert!(other.lines().any(|own| own == line), "{other}");
    }
}

#[test]
fn of_what_squeue_prints_only_this_launchers_pilots_are_taken() {
    use JobState::{Pending, Running};
    let jobs = parse_jobs(include_str!("squeue.txt"), "causeway-9f86d081-").unwrap();
    let told: Vec<_> = jobs
        .iter()
        .map(|job| (job.id, job.slot, job.state, job.elapsed, &job.node[..], &job.reason[..]))
        .collect();
    assert_eq!(
        told,
        [
            (23, 3, Pending, 0, "", "Resources"),
            (24, 12, Pending, 0, "", "Priority"),
            (25, 0, Pending, 0, "", "Dependency"),
            (27, 7, Pending, 0, "", "PartitionTimeLimit"),
            (29, 5, Pending, 0, "", "Priority"),
            (20, 0, Running, 1, "n1", "None"),
            (21, 1, Running, 1, "n2", "None"),
            (22, 2, Running, 1, "n3", "None"),
        ]
    );
    let ending = "19|COMPLETING|1-00:02:03|n1|None|causeway-9f86d081-5\n";
    let ending = parse_jobs(ending, "causeway-9f86d081-").unwrap().remove(0);
    assert_eq!((ending.state, ending.elapsed), (JobState::Ending, 86_523));
    assert_eq!(parse_jobs("", "causeway-9f86d081-").unwrap(), []);
}

#[test]
fn what_is_not_squeues_is_told_and_not_taken_for_an_empty_queue() {
    for bad in [
        "slurm_load_jobs error: Unable to contact slurm controller",
        "x|RUNNING|0:01|n1|None|causeway-9f86d081-1",
    ] {
        let error = parse_jobs(bad, "causeway-9f86d081-").unwrap_err();
        assert!(format!("{error:#}").contains(bad), "{error:#}");
    }
}

#[test]
fn gpus_are_counted_in_slurms_words() {
    for (gres, expected) in
        [("", 0), ("gpu", 1), ("gpu:2", 2), ("gpu:a100", 1), ("gpu:a100:4", 4), ("nvme:1,gpu:a:1,gpu:b:2", 3)]
    {
        assert_eq!(gpus(gres), expected, "{gres}");
    }
}

#[test]
fn time_limits_are_read_as_slurm_reads_them() {
    for (time, expected) in [
        ("90", Some(5400)),
        ("1:30", Some(90)),
        ("4:00:00", Some(14_400)),
        ("2-0", Some(172_800)),
        ("1-2:03", Some(93_780)),
        ("1-2:03:04", Some(93_784)),
        ("unlimited", Some(u64::MAX)),
        ("soon", None),
        ("1:2:3:4", None),
        ("", None),
    ] {
        assert_eq!(seconds(time), expected, "{time}");
    }
}

#[test]
fn a_wrong_option_is_refused_by_its_name() {
    for (option, what) in [
        ("--time=3", "--time 3: a pilot is told to end 120 s before its limit"),
        ("--time=soon", "--time \"soon\" is no time limit"),
        ("--name=a b", "--name \"a b\": letters, digits"),
        ("--sbatch=constraint=a", "--sbatch \"constraint=a\": an option of sbatch begins with --"),
        ("--sbatch=--comment=a b", "--sbatch \"--comment=a b\": ' '"),
    ] {
        let error = slurm(&[option]).args.check().unwrap_err().to_string();
        assert!(error.starts_with(what), "{error}");
    }
    let error = slurm(&["--partition=gpu\nrm"]).script(0, &[]).unwrap_err().to_string();
    assert!(error.starts_with("--partition"), "{error}");
    slurm(&["--time=4:00:00"]).args.check().unwrap();
}

#[test]
fn a_pilots_worker_is_known_by_its_jobs_name_and_node() {
    let slurm = slurm(&[]);
    assert_eq!(slurm.worker_name(3, "n7"), "causeway-9f86d081-3.n7");
    assert!(slurm.is_ours("causeway-9f86d081-3.n7"));
    assert!(!slurm.is_ours("causeway-1b4f0e98-3.n7"));
}

#[test]
fn the_script_is_sound_bash() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), slurm(&[]).script(0, &[]).unwrap()).unwrap();
    let checked = std::process::Command::new("bash").arg("-n").arg(file.path()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
