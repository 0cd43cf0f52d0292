// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
/*
 * A driver for QEMU's teaching device (docs/specs/edu of QEMU) that takes its interrupts by MSI: what no driver in user
 * space can do without VFIO. Its attributes, in the device's folder in sysfs:
 *
 *   raise        write a number from 1 on: the device interrupts with that cause. The write returns when the interrupt
 *                has come; it fails with ETIMEDOUT if none came, with EIO if it had another cause
 *   interrupts   how many interrupts came
 */
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/sysfs.h>

#define INTERRUPT_STATUS 0x24
#define INTERRUPT_RAISE 0x60
#define INTERRUPT_ACKNOWLEDGE 0x64

#define LIMIT (20 * HZ)

struct edu {
	void __iomem *registers;
	/* One interrupt is raised at a time. */
	struct mutex raising;
	struct completion came;
	u32 cause;
	atomic_t interrupts;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 cause = readl(edu->registers + INTERRUPT_STATUS);

	if (!cause)
		return IRQ_NONE;
	writel(cause, edu->registers + INTERRUPT_ACKNOWLEDGE);
	edu->cause = cause;
	atomic_inc(&edu->interrupts);
	complete(&edu->came);
	return IRQ_HANDLED;
}

static ssize_t interrupts_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "%d\n", atomic_read(&edu->interrupts));
}
static DEVICE_ATTR_RO(interrupts);

static ssize_t raise_store(struct device *dev, struct device_attribute *attr, const char *text, size_t len)
{
	struct edu *edu = dev_get_drvdata(dev);
	ssize_t result = len;
	u32 cause;
	int err = kstrtou32(text, 0, &cause);

	if (err)
		return err;
	if (!cause)
		return -EINVAL;
	mutex_lock(&edu->raising);
	reinit_completion(&edu->came);
	writel(cause, edu->registers + INTERRUPT_RAISE);
	if (!wait_for_completion_timeout(&edu->came, LIMIT))
		result = -ETIMEDOUT;
	else if (edu->cause != cause)
		result = -EIO;
	mutex_unlock(&edu->raising);
	return result;
}
static DEVICE_ATTR_WO(raise);

static struct attribute *edu_attrs[] = {
	&dev_attr_interrupts.attr,
	&dev_attr_raise.attr,
	NULL,
};
ATTRIBUTE_GROUPS(edu);

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *edu = devm_kzalloc(&pdev->dev, sizeof(*edu), GFP_KERNEL);
	int err;

	if (!edu)
		return -ENOMEM;
	mutex_init(&edu->raising);
	init_completion(&edu->came);
	err = pcim_enable_device(pdev);
	if (err)
		return err;
	edu->registers = pcim_iomap(pdev, 0, 0);
	if (!edu->registers)
		return -ENOMEM;
	/* A message is a write of the device to memory. */
	pci_set_master(pdev);
	pci_set_drvdata(pdev, edu);
	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSI);
	if (err < 0)
		return err;
	err = request_irq(pci_irq_vector(pdev, 0), edu_interrupt, 0, "edu-msi", edu);
	if (err)
		pci_free_irq_vectors(pdev);
	return err;
}

static void edu_remove(struct pci_dev *pdev)
{
	free_irq(pci_irq_vector(pdev, 0), pci_get_drvdata(pdev));
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id edu_ids[] = {
	{ PCI_DEVICE(0x1234, 0x11e8) },
	{ }
};
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = "edu-msi",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("MSI of QEMU's teaching device, for a test");
MODULE_LICENSE("GPL");
