//! Makes the images of the tour and the samples from Debian's packages, and says where they are.

use decapod_tests::images;

fn main() -> anyhow::Result<()> {
    for recipe in [&images::BUSYBOX, &images::NGINX, &images::NGINX_2] {
        println!("{}", images::archive(recipe)?.display());
    }
    Ok(())
}
