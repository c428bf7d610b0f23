//! Boots in QEMU: the demo, the tests and the benchmark.

mod command;
mod disk;
mod initrd;
mod line;
mod modules;
mod packages;
mod qemu;
mod server;
mod system;
mod workspace;

fn main() -> anyhow::Result<()> {
    use anyhow::Context as _;
    let workspace = workspace::Workspace::find()?;
    let vm = workspace.vm();
    let kernel = packages::kernel::newest(&vm, packages::kernel::Flavour::Cloud)?;
    let builder = system::Builder::new(&vm, &kernel, 3)?;
    for generation in [1, 2] {
        let built = builder.build(system::Spec::generation(generation))?;
        println!("{} {}", built.image.display(), std::fs::metadata(&built.image).context("x")?.len());
    }
    Ok(())
}
