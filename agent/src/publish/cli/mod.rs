//! Arguments of `freshroot-publish`: their syntax here, the meaning of single values in [`value`].

mod help;
mod publishing;
mod value;

pub use publishing::Options;

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt as _};

use super::closure::store_path;
use super::hosts::Changes;
use super::inspect;
use super::netboot::base_url;
use super::serve;
use crate::formats::release::ChannelName;
use crate::store_path::{STORE, StorePath};
use publishing::{Given, PUBLISHING};

/// What is to be done.
#[derive(Debug)]
pub enum Command {
    /// Print a text.
    Print(String),
    /// Make a key pair.
    Keygen {
        /// The key's name.
        name: String,
        /// Folder or file.
        out: PathBuf,
    },
    /// Publish an image.
    Image {
        /// The image.
        file: PathBuf,
        /// How.
        options: Box<Options>,
    },
    /// Make an image and publish it.
    Closure {
        /// What it must hold.
        paths: Vec<StorePath>,
        /// The closure's registration.
        registration: Option<PathBuf>,
        /// Where the store is.
        store: PathBuf,
        /// zstd's level.
        level: u32,
        /// How.
        options: Box<Options>,
    },
    /// Replace the keys that have signed what was published.
    Rotate {
        /// The served folder.
        folder: PathBuf,
        /// Secret keys: the new ones.
        keys: Vec<PathBuf>,
        /// Public keys, or their files: the old ones.
        old: Vec<String>,
        /// Without the signatures of the old ones.
        drop_old: bool,
        /// Only say what there is to do.
        dry_run: bool,
    },
    /// Sign what was published.
    Sign {
        /// The served folder.
        folder: PathBuf,
        /// Secret keys.
        keys: Vec<PathBuf>,
    },
    /// Keep the table of machines.
    Hosts {
        /// The served folder.
        folder: PathBuf,
        /// What changes.
        changes: Changes,
    },
    /// Serve a folder.
    Serve {
        /// The served folder.
        folder: PathBuf,
        /// How.
        options: serve::Options,
    },
    /// The program's own child: see [`inspect`].
    Inspect(PathBuf),
}

/// Wrong arguments: what is wrong, in one sentence. The program ends with 2.
#[derive(Debug)]
pub struct Usage(String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<lexopt::Error> for Usage {
    fn from(error: lexopt::Error) -> Self {
        Self(error.to_string())
    }
}

const COMMANDS: &[&str] = &["keygen", "image", "closure", "sign", "rotate", "hosts", "serve"];
const ROTATE: &[&str] = &["key", "old-public", "drop-old", "dry-run"];
const HOSTS: &[&str] = &["remove", "default", "url"];
const SERVE: &[&str] = &["listen", "port-file", "rate", "url"];

/// Reads the arguments, the program's name first. `now` is the time in seconds since 1970.
///
/// # Errors
/// Says what is wrong, and the nearest word that would be right.
pub fn parse(arguments: impl IntoIterator<Item = OsString>, now: u64) -> Result<Command, Usage> {
    let mut parser = Parser::from_iter(arguments);
    let command = match parser.next()? {
        None => return Err(Usage(format!("a command is missing: one of {}", COMMANDS.join(", ")))),
        Some(Arg::Short('h') | Arg::Long("help")) => return Ok(Command::Print(help::MAIN.to_owned())),
        Some(Arg::Short('V') | Arg::Long("version")) => {
            return Ok(Command::Print(format!("freshroot-publish {}\n", env!("CARGO_PKG_VERSION"))));
        }
        Some(Arg::Value(word)) => word.string()?,
        Some(Arg::Short(_) | Arg::Long(_)) => return Err(Usage("a command comes before options".to_owned())),
    };
    match command.as_str() {
        "keygen" => keygen(&mut parser),
        "image" => image(&mut parser, now),
        "closure" => closure(&mut parser, now),
        "sign" => sign(&mut parser),
        "rotate" => rotate(&mut parser),
        "hosts" => hosts(&mut parser),
        "serve" => serve(&mut parser),
        inspect::SUBCOMMAND => one("the image", values(&mut parser)?).map(|file| Command::Inspect(file.into())),
        "help" => Ok(Command::Print(help::MAIN.to_owned())),
        other => Err(unknown("command", other, COMMANDS)),
    }
}

fn values(parser: &mut Parser) -> Result<Vec<OsString>, Usage> {
    let mut values = Vec::new();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(value) => values.push(value),
            Arg::Short(_) | Arg::Long(_) => return Err(argument.unexpected().into()),
        }
    }
    Ok(values)
}

fn keygen(parser: &mut Parser) -> Result<Command, Usage> {
    let (mut names, mut out) = (Vec::new(), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::KEYGEN.to_owned())),
            Arg::Long("out") => out = Some(parser.value()?.into()),
            Arg::Value(value) => names.push(value),
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, &["out"])),
        }
    }
    let name = one("the key's name", names)?.string()?;
    Ok(Command::Keygen {
        name,
        out: out.ok_or_else(|| missing("--out FOLDER|FILE"))?,
    })
}

fn image(parser: &mut Parser, now: u64) -> Result<Command, Usage> {
    let (mut files, mut given) = (Vec::new(), Given::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::IMAGE.to_owned())),
            Arg::Value(value) => files.push(value),
            Arg::Long(name) if PUBLISHING.contains(&name) => {
                let name = name.to_owned();
                given.take(&name, parser)?;
            }
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, PUBLISHING)),
        }
    }
    let file = one("the image's file", files)?.into();
    Ok(Command::Image {
        file,
        options: Box::new(given.options(now)?),
    })
}

fn closure(parser: &mut Parser, now: u64) -> Result<Command, Usage> {
    let (mut words, mut given) = (Vec::new(), Given::default());
    let (mut registration, mut store, mut level) = (None, PathBuf::from(STORE), 19);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::CLOSURE.to_owned())),
            Arg::Value(value) => words.push(value.string()?),
            Arg::Long("registration") => registration = Some(parser.value()?.into()),
            Arg::Long("store") => store = parser.value()?.into(),
            Arg::Long("level") => {
                level = parser.value()?.parse()?;
                if !(1..=22).contains(&level) {
                    return Err(Usage(format!("--level {level}: zstd's levels are 1 to 22")));
                }
            }
            Arg::Long(name) if PUBLISHING.contains(&name) => {
                let name = name.to_owned();
                given.take(&name, parser)?;
            }
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, &[PUBLISHING, &["registration", "store", "level"]].concat())),
        }
    }
    if words.is_empty() {
        return Err(missing("a store path"));
    }
    let mut paths = Vec::new();
    for word in words {
        paths.push(value::linked(&word).and_then(|word| store_path(&word, &store)).map_err(meaning)?);
    }
    Ok(Command::Closure {
        paths,
        registration,
        store,
        level,
        options: Box::new(given.options(now)?),
    })
}

fn sign(parser: &mut Parser) -> Result<Command, Usage> {
    let (mut folders, mut keys) = (Vec::new(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::SIGN.to_owned())),
            Arg::Long("key") => keys.push(parser.value()?.into()),
            Arg::Value(value) => folders.push(value),
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, &["key"])),
        }
    }
    let folder = one("the served folder", folders)?.into();
    if keys.is_empty() {
        return Err(missing("--key FILE"));
    }
    Ok(Command::Sign { folder, keys })
}

fn rotate(parser: &mut Parser) -> Result<Command, Usage> {
    let (mut folders, mut keys, mut old) = (Vec::new(), Vec::new(), Vec::new());
    let (mut drop_old, mut dry_run) = (false, false);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::ROTATE.to_owned())),
            Arg::Long("key") => keys.push(parser.value()?.into()),
            Arg::Long("old-public") => old.push(parser.value()?.string()?),
            Arg::Long("drop-old") => drop_old = true,
            Arg::Long("dry-run") => dry_run = true,
            Arg::Value(value) => folders.push(value),
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, ROTATE)),
        }
    }
    let folder = one("the served folder", folders)?.into();
    if keys.is_empty() {
        return Err(missing("--key FILE, the new secret key,"));
    }
    if old.is_empty() {
        return Err(missing("--old-public KEY, the public key that machines trust today,"));
    }
    Ok(Command::Rotate {
        folder,
        keys,
        old,
        drop_old,
        dry_run,
    })
}

fn hosts(parser: &mut Parser) -> Result<Command, Usage> {
    let (mut words, mut changes) = (Vec::new(), Changes::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::HOSTS.to_owned())),
            Arg::Long("remove") => changes.remove.push(parser.value()?.string()?.parse().map_err(meaning)?),
            Arg::Long("default") => changes.default = Some(channel("--default", &parser.value()?.string()?)?),
            Arg::Long("url") => changes.url = Some(base_url(&parser.value()?.string()?).map_err(meaning)?),
            Arg::Value(value) => words.push(value.string()?),
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, HOSTS)),
        }
    }
    let mut words = words.into_iter();
    let folder = words.next().ok_or_else(|| missing("the served folder"))?.into();
    for word in words {
        let (id, name) = word
            .split_once('=')
            .ok_or_else(|| Usage(format!("«{word}»: MACHINE=CHANNEL is expected, such as 00:1f:29:12:34:56=lab")))?;
        changes.set.push((id.parse().map_err(meaning)?, channel(id, name)?));
    }
    if changes.url.is_some() && changes.default.is_none() {
        return Err(missing("--default CHANNEL, to which --url belongs,"));
    }
    Ok(Command::Hosts { folder, changes })
}

fn channel(what: &str, name: &str) -> Result<ChannelName, Usage> {
    name.parse().map_err(|error| Usage(format!("{what}: {error}")))
}

fn serve(parser: &mut Parser) -> Result<Command, Usage> {
    let mut folders = Vec::new();
    let mut options = serve::Options {
        listen: ([127, 0, 0, 1], 8080).into(),
        port_file: None,
        rate: None,
        url: None,
    };
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Short('h') | Arg::Long("help") => return Ok(Command::Print(help::SERVE.to_owned())),
            Arg::Long("listen") => options.listen = value::listen(&parser.value()?.string()?).map_err(meaning)?,
            Arg::Long("port-file") => options.port_file = Some(parser.value()?.into()),
            Arg::Long("rate") => options.rate = Some(value::rate(&parser.value()?.string()?).map_err(meaning)?),
            Arg::Long("url") => options.url = Some(base_url(&parser.value()?.string()?).map_err(meaning)?),
            Arg::Value(value) => folders.push(value),
            Arg::Short(_) | Arg::Long(_) => return Err(wrong(&argument, SERVE)),
        }
    }
    let folder = one("the folder to serve", folders)?.into();
    Ok(Command::Serve { folder, options })
}

fn meaning(error: anyhow::Error) -> Usage {
    Usage(format!("{error:#}"))
}

fn missing(what: &str) -> Usage {
    Usage(format!("{what} is missing"))
}

fn one(what: &str, mut values: Vec<OsString>) -> Result<OsString, Usage> {
    match (values.pop(), values.is_empty()) {
        (Some(value), true) => Ok(value),
        (None, _) => Err(missing(what)),
        (Some(extra), false) => Err(Usage(format!("«{}» is one argument too many", extra.display()))),
    }
}

fn wrong(argument: &Arg<'_>, known: &[&str]) -> Usage {
    match argument {
        Arg::Long(name) => unknown("option", name, known),
        Arg::Short(letter) => Usage(format!("there is no option -{letter}")),
        Arg::Value(value) => Usage(format!("«{}» is one argument too many", value.display())),
    }
}

/// Names what is not known, and the nearest word that is.
fn unknown(kind: &str, word: &str, known: &[&str]) -> Usage {
    let dashes = if kind == "option" { "--" } else { "" };
    let nearest = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), known)).min();
    let hint = match nearest {
        Some((distance, nearest)) if distance <= word.len().max(nearest.len()) / 2 => format!("did you mean {dashes}{nearest}?"),
        Some(_) | None => format!("there are {dashes}{}", known.join(&format!(", {dashes}"))),
    };
    Usage(format!("there is no {kind} {dashes}{word}; {hint}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]
    use super::*;

    fn parsed(line: &str) -> Result<Command, Usage> {
        parse(
            std::iter::once("freshroot-publish")
                .chain(line.split_whitespace())
                .map(OsString::from),
            1000,
        )
    }

    #[test]
    fn wrong_arguments_are_named_with_the_nearest_right_word() {
        for (line, words) in [
            ("", "a command is missing: one of keygen"),
            ("imgae x", "there is no command imgae; did you mean image?"),
            ("zzzzzz", "there are keygen, image"),
            ("keygen", "the key's name is missing"),
            ("keygen a b --out x", "«b» is one argument too many"),
            ("keygen a --ouput x", "did you mean --out?"),
            ("keygen a -x", "no option -x"),
            ("image x --out o", "give --key FILE, or --unsigned"),
            ("image x --out o --key k --unsigned", "exclude"),
            ("image x --unsigned", "--out FOLDER is missing"),
            (
                "image x --out o --unsigned --kernel k",
                "--initrd, which --kernel needs, is missing",
            ),
            ("image x --out o --unsigned --chanel c", "did you mean --channel?"),
            ("image x --out o --unsigned --channel .c", "--channel: "),
            ("image x --out o --unsigned --serial 0", "cannot parse"),
            ("image x --out o --unsigned --system x", "NAME=TOPLEVEL"),
            ("image x --out o --unsigned --url ftp://x", "http://"),
            ("image x --out o --unsigned --not-after soon", "soon"),
            ("closure --out o --unsigned", "a store path is missing"),
            ("closure nix --out o --unsigned", "«nix»"),
            (
                "closure 00000000000000000000000000000000-x --level 23 --out o --unsigned",
                "1 to 22",
            ),
            ("sign d", "--key FILE is missing"),
            ("rotate", "the served folder is missing"),
            ("rotate d --old-public k:x", "--key FILE, the new secret key, is missing"),
            (
                "rotate d --key k",
                "--old-public KEY, the public key that machines trust today, is missing",
            ),
            ("rotate d --old-publik k", "did you mean --old-public?"),
            ("serve d --listen 8080", "ADDRESS:PORT"),
            ("hosts", "the served folder is missing"),
            ("hosts d lab", "MACHINE=CHANNEL"),
            ("hosts d 00:1f=lab", "«00:1f»"),
            ("hosts d 00:1f:29:12:34:56=.lab", "00:1f:29:12:34:56: "),
            ("hosts d --default .lab", "--default: "),
            ("hosts d --url http://s", "--default CHANNEL, to which --url belongs, is missing"),
            ("hosts d --remov x", "did you mean --remove?"),
            ("serve d --rate 0", "rate"),
            ("serve d --url s", "http://"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn each_command_explains_itself_with_an_example() {
        for command in COMMANDS {
            let Command::Print(text) = parsed(&format!("{command} --help")).unwrap() else {
                panic!("{command}")
            };
            assert!(
                text.contains(&format!("freshroot-publish {command} ")) && text.contains("Example"),
                "{text}"
            );
        }
        let Command::Print(text) = parsed("image --help").unwrap() else {
            panic!()
        };
        assert!(
            PUBLISHING
                .iter()
                .all(|option| text.contains(&format!("--{option} ")) || text.contains(&format!("--{option}\n")))
        );
    }

    #[test]
    fn the_manual_page_has_every_option() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/freshroot-publish.1.md")).unwrap();
        let own = ["registration", "store", "level"];
        for option in PUBLISHING.iter().chain(&own).chain(ROTATE).chain(HOSTS).chain(SERVE) {
            assert!(page.contains(&format!("**--{option}**")), "--{option}");
        }
        for command in COMMANDS {
            assert!(page.contains(&format!("\n**{command}** ")), "{command}");
        }
    }

    #[test]
    fn options_reach_their_places() {
        let line = "image f --out=o --key a --key b --kernel k --initrd i --channel lab --serial 4 --not-after 1d --channel-mode \
                    --system s=/nix/store/00000000000000000000000000000000-nixos-system-x --url http://h/ --kernel-params quiet";
        let Command::Image { file, options } = parsed(line).unwrap() else {
            panic!()
        };
        assert_eq!((file, options.out), ("f".into(), "o".into()));
        assert_eq!(options.keys, [PathBuf::from("a"), "b".into()]);
        assert_eq!(options.boot, Some(("k".into(), "i".into())));
        assert_eq!(
            (options.channel.as_str(), options.serial.unwrap().get(), options.not_after),
            ("lab", 4, Some(1000 + 86400))
        );
        assert_eq!(
            (options.systems[0].0.as_str(), options.url.as_deref(), options.channel_mode),
            ("s", Some("http://h"), true)
        );
        assert_eq!(options.kernel_params, ["quiet"]);
    }
}
