//! Servers that others wrote, started in a namespace with the least configuration that serves a folder.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::net::{Net, Process};
use crate::command::Tool;

const TOOL_LIMIT: Duration = Duration::from_secs(10);

/// What nginx needs around its servers.
fn nginx_conf(work: &Path, servers: &str) -> String {
    let work = work.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {work}/{name};\n"))
        .collect();
    format!(
        "daemon off;\nuser root;\nworker_processes 1;\npid {work}/pid;\nerror_log stderr warn;\nevents {{ worker_connections 512; }}\n\
         http {{\naccess_log {work}/access.log;\nsendfile on;\n{temporary}{servers}\n}}\n"
    )
}

fn nginx(net: &Net, name: &str, address: SocketAddr, servers: &str, dir: &Path) -> Result<Process> {
    let work = dir.join(name);
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let conf = work.join("nginx.conf");
    fs::write(&conf, nginx_conf(&work, servers)).with_context(|| format!("writing {}", conf.display()))?;
    let mut command = net.command("nginx");
    command.arg("-c").arg(&conf);
    Process::start(net, name, command, address, dir)
}

/// nginx with the folder `root`.
pub fn nginx_folder(net: &Net, address: SocketAddr, root: &Path, dir: &Path) -> Result<Process> {
    let server = format!("server {{ listen {address}; root {}; }}", root.display());
    nginx(net, "nginx", address, &server, dir)
}

/// nginx as a cache, by the file that the documentation shows.
pub fn nginx_cache(net: &Net, address: SocketAddr, conf: &Path, dir: &Path) -> Result<Process> {
    nginx(net, "nginx-cache", address, &format!("include {};", conf.display()), dir)
}

/// lighttpd with the folder `root`.
pub fn lighttpd(net: &Net, address: SocketAddr, root: &Path, dir: &Path) -> Result<Process> {
    let conf = dir.join("lighttpd.conf");
    let text = format!(
        "server.document-root = \"{}\"\nserver.bind = \"{}\"\nserver.port = {}\nmimetype.assign = ( \"\" => \"application/octet-stream\" )\n",
        root.display(),
        address.ip(),
        address.port()
    );
    fs::write(&conf, text).with_context(|| format!("writing {}", conf.display()))?;
    let mut command = net.command("lighttpd");
    command.arg("-D").arg("-f").arg(&conf);
    Process::start(net, "lighttpd", command, address, dir)
}

/// Python's `http.server` with the folder `root`.
pub fn python(net: &Net, address: SocketAddr, root: &Path, dir: &Path) -> Result<Process> {
    let mut command = net.command("python3");
    command.args([
        "-m",
        "http.server",
        &address.port().to_string(),
        "--bind",
        &address.ip().to_string(),
    ]);
    command.arg("--directory").arg(root);
    Process::start(net, "python", command, address, dir)
}

/// squid as a proxy, which may want a user and a password.
pub fn squid(net: &Net, address: SocketAddr, user: Option<(&str, &str)>, dir: &Path) -> Result<Process> {
    let work = dir.join("squid");
    fs::create_dir_all(&work).with_context(|| format!("making {}", work.display()))?;
    let shown = work.display();
    let access = match user {
        None => "http_access allow all".to_owned(),
        Some((name, password)) => {
            let hashed = Tool::new("openssl", TOOL_LIMIT).args(["passwd", "-apr1", password]).text()?;
            let file = work.join("users");
            fs::write(&file, format!("{name}:{hashed}")).with_context(|| format!("writing {}", file.display()))?;
            format!(
                "auth_param basic program /usr/lib/squid/basic_ncsa_auth {}\nacl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all",
                file.display()
            )
        }
    };
    let conf = work.join("squid.conf");
    let text = format!(
        "http_port {address}\n{access}\npid_filename none\npinger_enable off\nvisible_hostname proxy\ncache_mem 64 MB\n\
         access_log stdio:{shown}/access.log\ncache_log {shown}/cache.log\ncoredump_dir {shown}\nshutdown_lifetime 0 seconds\n"
    );
    fs::write(&conf, text).with_context(|| format!("writing {}", conf.display()))?;
    // It does not run as root.
    Tool::new("chown", TOOL_LIMIT).args(["-R", "proxy"]).arg(&work).run()?;
    let mut command: Command = net.command("squid");
    command.arg("-N").arg("-f").arg(&conf);
    Process::start(net, "squid-proxy", command, address, dir)
}
