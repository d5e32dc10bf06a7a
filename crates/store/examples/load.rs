//! Loads sources into a store and tells how long each took: `load ROOT SOURCE...`; `--tars` also checks that each layer's tar
//! comes back bit for bit.

use std::time::Instant;

use store::{LoadOptions, Origin, Silent, Source, Store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args: Vec<String> = std::env::args().skip(1).collect();
    let tars = args.iter().position(|arg| arg == "--tars").map(|at| args.remove(at)).is_some();
    let root = args.first().ok_or("load ROOT SOURCE...")?;
    let store = Store::open(root.as_ref())?;
    for source in &args[1..] {
        let start = Instant::now();
        let loaded = store.load(&Source::parse(source)?, &LoadOptions::default(), &Silent)?;
        let seconds = start.elapsed().as_secs_f64();
        for image in loaded {
            let fetched = image.layers.iter().filter(|layer| layer.origin == Origin::Fetched).count();
            println!(
                "{seconds:.3} s  {:?}  {}: {fetched} of {} layers",
                image.names,
                image.id.short(),
                image.layers.len()
            );
        }
    }
    if tars {
        for layer in store.layers()? {
            let start = Instant::now();
            store.layer_tar(&layer, &mut std::io::sink())?;
            println!(
                "{layer}: {} bytes, the same in {:.3} s",
                store.layer_size(&layer)?,
                start.elapsed().as_secs_f64()
            );
        }
    }
    Ok(())
}
