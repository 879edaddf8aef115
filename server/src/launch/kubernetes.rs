//! Kubernetes: a Job of pilots, as JSON for `kubectl apply`. It is a work queue in Kubernetes' sense (`parallelism`
//! without `completions`): each pod ends when it has been idle for long enough, and when all have, the Job is complete.

use super::pilot::MARGIN_MIN;
use anyhow::{Context, Result, bail, ensure};
use causeway_connect::Trust;
use clap::Args;
use serde_json::{Value, json};

/// Where a pod has the assets.
const DATA: &str = "/data";
/// Where it has its attempts.
const STATE: &str = "/var/lib/causeway";
/// Folder of its token.
const TOKEN: &str = "/run/secrets/causeway";
/// An ordinary user, whatever the image says: data are readable, the state is the pod's own.
const USER: u32 = 10001;

/// Options of `causeway launch kubernetes`.
#[derive(Args, Debug, Clone)]
pub struct KubernetesArgs {
    /// URL of the server as the pods reach it
    #[arg(long, value_name = "URL")]
    pilot_server: String,
    /// Let pods ask a server over plain http, on a network that you trust
    #[arg(long)]
    pilot_insecure_http: bool,
    /// Key of the Secret that holds the authority which signed the server's certificate, unless it is a public one
    #[arg(long, value_name = "KEY")]
    pilot_ca: Option<String>,
    /// Image of the trainer (docker/trainer.Dockerfile)
    #[arg(long)]
    image: String,
    /// Name of the Job
    #[arg(long, default_value = "causeway-pilots")]
    name: String,
    /// Namespace; kubectl's if not given
    #[arg(long)]
    namespace: Option<String>,
    /// Pods
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pilots: u32,
    /// GPUs of a pod
    #[arg(long, default_value_t = 0)]
    gpus: u32,
    /// Name of the GPUs among a node's resources
    #[arg(long, default_value = "nvidia.com/gpu")]
    gpu_resource: String,
    /// Cores of a pod, as Kubernetes writes them
    #[arg(long, default_value = "4")]
    cpus: String,
    /// Memory of a pod, as Kubernetes writes it
    #[arg(long, default_value = "16Gi")]
    memory: String,
    /// The PersistentVolumeClaim with the assets
    #[arg(long, default_value = "causeway-data")]
    data_claim: String,
    /// The Secret whose key worker.token is a worker token
    #[arg(long, default_value = "causeway-worker")]
    secret: String,
    /// Seconds after which a pilot without work ends
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    idle: u64,
    /// Seconds between the word to end and the end: a pod's run goes back with its state meanwhile
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(MARGIN_MIN..))]
    margin_seconds: u64,
    /// Print the Job; there is nothing else to do here
    #[arg(long, required = true)]
    print: bool,
}

impl KubernetesArgs {
    /// The Job as JSON.
    pub fn text(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.job()?)? + "\n")
    }

    fn job(&self) -> Result<Value> {
        let named = [("--name", Some(&self.name)), ("--secret", Some(&self.secret))];
        let named = named
            .into_iter()
            .chain([("--data-claim", Some(&self.data_claim)), ("--namespace", self.namespace.as_ref())]);
        for (option, name) in named {
            name.map(|name| dns_label(option, name)).transpose()?;
        }
        Trust { ca: None, insecure_http: self.pilot_insecure_http }
            .check(&self.pilot_server)
            .context("--pilot-server, for which the flag is --pilot-insecure-http")?;
        ensure!(!self.image.trim().is_empty(), "--image is empty");
        let devices: Vec<String> = (0..self.gpus).map(|index| format!("cuda:{index}")).collect();
        let devices = if devices.is_empty() { "cpu".to_owned() } else { devices.join(",") };
        let mut resources = json!({"cpu": self.cpus, "memory": self.memory});
        if self.gpus > 0 {
            resources[&self.gpu_resource] = json!(self.gpus.to_string());
        }
        let labels =
            json!({"app.kubernetes.io/name": "causeway-trainer", "app.kubernetes.io/part-of": "causeway"});
        let variable = |name: &str, value: String| json!({"name": name, "value": value});
        let mut job = json!({
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": self.name, "labels": labels},
            "spec": {
                "parallelism": self.pilots,
                // A pod that is evicted or whose node dies is replaced; its run is safe in any case.
                "backoffLimit": 20,
                "ttlSecondsAfterFinished": 3600,
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        // In the same pod again: the agent finds what it left in its state folder.
                        "restartPolicy": "OnFailure",
                        "terminationGracePeriodSeconds": self.margin_seconds,
                        "automountServiceAccountToken": false,
                        "enableServiceLinks": false,
                        "securityContext": {"runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
                        "containers": [{
                            "name": "trainer",
                            "image": self.image,
                            "command": ["causeway-trainer", "work"],
                            "env": [
                                variable("CAUSEWAY_SERVER", self.pilot_server.clone()),
                                variable("CAUSEWAY_TOKEN_FILE", format!("{TOKEN}/worker.token")),
                                variable("CAUSEWAY_STATE", STATE.to_owned()),
                                variable("CAUSEWAY_DATA", DATA.to_owned()),
                                variable("CAUSEWAY_DEVICES", devices),
                                variable("CAUSEWAY_IDLE_SECONDS", self.idle.to_string()),
                                variable("CAUSEWAY_GRACE_SECONDS", (self.margin_seconds - 30).to_string()),
                                {"name": "CAUSEWAY_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                            ],
                            "resources": {"requests": resources, "limits": resources},
                            "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                            "volumeMounts": [
                                {"name": "data", "mountPath": DATA, "readOnly": true},
                                {"name": "state", "mountPath": STATE},
                                {"name": "token", "mountPath": TOKEN, "readOnly": true},
                            ],
                        }],
                        "volumes": [
                            {"name": "data", "persistentVolumeClaim": {"claimName": self.data_claim, "readOnly": true}},
                            {"name": "state", "emptyDir": {}},
                            {"name": "token", "secret": {"secretName": self.secret, "defaultMode": 0o440}},
                        ],
                    },
                },
            },
        });
        let trust = [
            self.pilot_ca.as_ref().map(|key| variable("CAUSEWAY_CA", format!("{TOKEN}/{key}"))),
            self.pilot_insecure_http.then(|| variable("CAUSEWAY_INSECURE_HTTP", "true".to_owned())),
        ];
        if let Value::Array(variables) = &mut job["spec"]["template"]["spec"]["containers"][0]["env"] {
            variables.extend(trust.into_iter().flatten());
        }
        if let Some(namespace) = &self.namespace {
            job["metadata"]["namespace"] = json!(namespace);
        }
        Ok(job)
    }
}

/// Refuses what Kubernetes does not take as a name.
fn dns_label(option: &str, name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
    if name.len() > 63 || !name.chars().all(good) || !edge(name.chars().next()) || !edge(name.chars().last())
    {
        bail!("{option} {name:?}: up to 63 lower-case letters, digits and -, neither first nor last a -");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
