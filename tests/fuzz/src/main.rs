//! `seeds FOLDER`: writes each target's seeds into `FOLDER/TARGET/`.

use std::path::PathBuf;
use std::process::ExitCode;

use fuzz::seeds::TARGETS;

fn main() -> ExitCode {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        eprintln!("usage: seeds FOLDER");
        return ExitCode::from(2);
    };
    for target in TARGETS {
        let corpus = folder.join(target.name);
        let written = std::fs::create_dir_all(&corpus).and_then(|()| {
            (target.seeds)()
                .iter()
                .enumerate()
                .try_for_each(|(number, seed)| std::fs::write(corpus.join(format!("seed-{number:02}")), seed))
        });
        if let Err(error) = written {
            eprintln!("seeds: {}: {error}", corpus.display());
            return ExitCode::FAILURE;
        }
        println!("{}", target.name);
    }
    ExitCode::SUCCESS
}
