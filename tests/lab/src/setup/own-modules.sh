#!/bin/sh
# Runs in a Debian system that has the kernel's headers and Debian's kernel sources: builds iommufd, and VFIO with
# iommufd, as modules for the kernel that the headers belong to; and /edu-msi.c. /modules gets them.
set -e
headers=$(echo /usr/src/linux-headers-*-amd64)
source=$(echo /usr/src/linux-source-*.tar.xz)
mkdir /build /modules
tar -C /build -xJf "$source" --strip-components=1 --wildcards '*/drivers/vfio' '*/drivers/iommu' '*/lib/interval_tree.c'
cd /build
# The one thing that iommufd needs of the kernel proper and Debian's does not have: CONFIG_INTERVAL_TREE_SPAN_ITER.
# The module gets its own copy of the file, whose other functions must not bear the kernel's names.
cat > drivers/iommu/iommufd/interval_span.c <<'C'
#include <linux/module.h>
#define interval_tree_insert iommufd_interval_tree_insert
#define interval_tree_remove iommufd_interval_tree_remove
#define interval_tree_iter_first iommufd_interval_tree_iter_first
#define interval_tree_iter_next iommufd_interval_tree_iter_next
#undef EXPORT_SYMBOL_GPL
#define EXPORT_SYMBOL_GPL(symbol)
#include "../../../lib/interval_tree.c"
C
sed -i 's/^\tioas\.o/\tinterval_span.o ioas.o/' drivers/iommu/iommufd/Makefile
echo 'obj-m += drivers/iommu/iommufd/ drivers/vfio/' > Kbuild
# make decides what is built by the first three, the sources by the last.
make -s -j"$(nproc)" -C "$headers" M=/build CONFIG_IOMMUFD=m CONFIG_VFIO_DEVICE_CDEV=y CONFIG_VFIO_MDEV= \
    KCFLAGS='-w -DCONFIG_IOMMUFD_MODULE=1 -DCONFIG_VFIO_DEVICE_CDEV=1 -DCONFIG_INTERVAL_TREE_SPAN_ITER=1' modules
mkdir /edu-msi
cp /edu-msi.c /edu-msi
echo 'obj-m += edu-msi.o' > /edu-msi/Kbuild
make -s -C "$headers" M=/edu-msi modules
strip --strip-debug -o /modules/edu-msi.ko /edu-msi/edu-msi.ko

for module in $(find drivers -name '*.ko'); do
    mkdir -p "/modules/kernel/${module%/*}"
    strip --strip-debug -o "/modules/kernel/$module" "$module"
done
