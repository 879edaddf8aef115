//! Bad input gets a reason that says what is wrong and where, on the run, within a minute.

use anyhow::Result;
use causeway_tests::{Server, Trainer, binary, demo_data, small_finetune, wait_for};
use reqwest::Method;
use serde_json::{Value, json};
use sha2::Digest;
use std::{fs, path::Path, process::Command};

/// Submits a spec that must fail, and gives the reason.
async fn reason(server: &Server, spec: &Value) -> Result<String> {
    let id = server.submit(spec).await?;
    let run = wait_for("the run to fail", 60, || async {
        let run = server.get(&format!("/runs/{id}")).await?;
        assert_ne!(run["state"], "succeeded");
        Ok((run["state"] == "failed").then_some(run))
    })
    .await?;
    assert_eq!(run["attempts"], 1, "what would fail again is not tried again");
    Ok(run["reason"].as_str().unwrap_or_default().to_owned())
}

/// A class-folder asset with two images a class.
fn class_folder(data: &Path, name: &str, classes: &[&str]) -> Result<()> {
    let folder = data.join(name);
    for class in classes {
        fs::create_dir_all(folder.join("images").join(class))?;
        let list = fs::read_to_string(demo_data().join("tux-held-out/images.jsonl"))?;
        for line in list.lines().take(2) {
            let listed: Value = serde_json::from_str(line)?;
            let image = demo_data().join("tux-held-out").join(listed["image"].as_str().expect("a path"));
            fs::copy(&image, folder.join("images").join(class).join(image.file_name().expect("a name")))?;
        }
    }
    fs::write(
        folder.join("asset.toml"),
        format!(
            "name = '{name}'\nkind = 'dataset'\nformat = 'class-folder'\ntitle = '{name}'\nlicence = 'CC0-1.0'\n\
             source = 'a test'\n[dataset]\nleave_one_out = true\nclasses = ['a', 'b']\n[dataset.bank]\npath = 'images'\n"
        ),
    )?;
    Ok(())
}

/// Captions of images that the demo's target dataset holds too.
fn leaking_captions(data: &Path) -> Result<()> {
    let folder = data.join("leaking");
    fs::create_dir_all(&folder)?;
    let list = fs::read_to_string(demo_data().join("tux-held-out/images.jsonl"))?;
    let mut lines = String::new();
    for (at, line) in list.lines().step_by(20).take(4).enumerate() {
        let listed: Value = serde_json::from_str(line)?;
        let image = demo_data().join("tux-held-out").join(listed["image"].as_str().expect("a path"));
        fs::copy(&image, folder.join(format!("{at}.png")))?;
        lines += &format!("{}\n", json!({"image": format!("{at}.png"), "caption": format!("Caption {at}.")}));
    }
    fs::write(folder.join("images.jsonl"), lines)?;
    let about = "title = 'leaking'\nlicence = 'GPL-2.0'\nsource = 'a test'\n";
    let manifest = format!("name = 'leaking'\nkind = 'captions'\nformat = 'jsonl'\n{about}");
    fs::write(folder.join("asset.toml"), manifest)?;
    Ok(())
}

#[tokio::test]
async fn each_kind_of_bad_input_has_its_reason_on_the_run() -> Result<()> {
    let server = Server::start().await?;
    let data = server.folder().join("data");
    class_folder(&data, "whole", &["a", "b"])?;
    class_folder(&data, "lacks-a-class", &["a"])?;
    class_folder(&data, "corrupt", &["a", "b"])?;
    let broken = data.join("corrupt/images/b/broken.png");
    fs::write(&broken, b"\x89PNG\r\n\x1a\nnot really")?;
    leaking_captions(&data)?;
    let about = "kind = 'captions'\ntitle = 't'\nlicence = 'CC0-1.0'\nsource = 'a test'\n";
    fs::create_dir_all(data.join("torn"))?;
    let shards = "[captions]\npaths = ['00.tar']\n";
    fs::write(
        data.join("torn/asset.toml"),
        format!("name = 'torn'\nformat = 'webdataset'\n{about}{shards}"),
    )?;
    fs::write(data.join("torn/00.tar"), vec![7; 700])?;
    let _trainer = Trainer::start(&server, &[&data])?;

    let mut leaking = small_finetune();
    leaking["captions"]["asset"] = json!("leaking");
    let text = reason(&server, &leaking).await?;
    assert!(text.contains("also evaluation images") && text.contains("`tux-held-out`"), "{text}");
    let mut torn = small_finetune();
    torn["captions"]["asset"] = json!("torn");
    let text = reason(&server, &torn).await?;
    assert!(text.contains("00.tar"), "{text}");

    let mut diverging = small_finetune();
    diverging["method"] = json!({"kind": "full"});
    diverging["training"]["learning_rate"] = json!(1e30);
    diverging["evaluation"]["datasets"] = json!([{"asset": "whole", "role": "ood"}]);
    let text = reason(&server, &diverging).await?;
    assert!(text.contains("became") && text.contains("lower training.learning_rate"), "{text}");

    let mut spec = small_finetune();
    spec["evaluation"]["datasets"] = json!([{"asset": "corrupt", "role": "ood"}]);
    let text = reason(&server, &spec).await?;
    assert!(text.contains("broken.png"), "{text}");

    spec["evaluation"]["datasets"] = json!([{"asset": "lacks-a-class", "role": "ood"}]);
    let text = reason(&server, &spec).await?;
    assert!(text.contains("`b`") || text.contains("class b"), "{text}");

    let mut spec = small_finetune();
    spec["training"]["image_size"] = json!(50);
    let text = reason(&server, &spec).await?;
    assert!(text.contains("training.image_size"), "{text}");

    let weights = fs::read(demo_data().join("vit-s14-imgfocus/model.safetensors"))?;
    let half = weights[..weights.len() / 2].to_vec();
    let sha256: String = sha2::Sha256::digest(&half).iter().map(|byte| format!("{byte:02x}")).collect();
    server.user(Method::PUT, &format!("/blobs/{sha256}"))?.body(half).send().await?.error_for_status()?;
    let evaluation = json!({
        "experiment": "e", "kind": "evaluate",
        "weights": {"theta0": {"asset": "vit-s14-imgfocus"}, "theta1": {"blob": sha256}},
        "evaluation": {"datasets": [{"asset": "whole", "role": "ood"}], "image_size": 56, "k": [1]}
    });
    let text = reason(&server, &evaluation).await?;
    assert!(text.contains("truncated") || text.contains("safetensors"), "{text}");
    Ok(())
}

#[test]
fn a_full_disk_is_named_as_such() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("out");
    fs::create_dir(&out)?;
    let mut spec = small_finetune();
    spec["method"] = json!({"kind": "full"});
    spec["training"]["steps"] = json!(2);
    spec["training"]["learning_rate"] = json!(1e-5);
    spec["name"] = json!("full disk");
    let file = folder.path().join("spec.toml");
    fs::write(&file, toml_of(&spec))?;
    // A file system of 8 MB, mounted where only this process sees it: smaller than the checkpoint.
    let script = format!(
        "mount -t tmpfs -o size=8m tmpfs {out} && exec {trainer} train {spec} --data {data} --out {out}",
        out = out.display(),
        trainer = binary("causeway-trainer").display(),
        spec = file.display(),
        data = demo_data().display(),
    );
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script])
        .output()?;
    let text =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success(), "{text}");
    assert!(text.to_lowercase().contains("disk is full") || text.contains("No space left"), "{text}");
    Ok(())
}

fn toml_of(spec: &Value) -> String {
    toml::to_string(spec).expect("a spec is a table")
}
