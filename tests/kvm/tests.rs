//! The tests. Code is 16-bit unless said otherwise; each line of bytes has its instruction beside it.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::eventfd::EventFd as NixEventFd;
use passthru::error::Code;
use passthru::irq::{IrqChip, MsiMessage, Router};
use passthru::kvm::{Kvm, KvmVfio, VmEvent};
use passthru::memory::host::PageSize;
use passthru::memory::{Backing, HostMem, IoHandler, PRIORITY_OVERLAY, PRIORITY_PLATFORM, Region, Space};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::guest::{DONE, Guest, Machine, ROM, protected_mode, real_mode, run};

/// `Err` says why this kind of KVM cannot run it.
pub type Test = fn(&Kvm) -> Result<(), String>;

macro_rules! list {
    ($($name:ident)*) => { pub const ALL: &[(&str, Test)] = &[$((stringify!($name), $name),)*]; };
}

list! {
    accesses_reach_their_handlers
    collected_writes_come_before_the_next_access_and_ignored_ones_never
    string_instructions_are_taken_apart
    writes_of_rom_trap_and_reads_do_not
    a_triple_fault_is_a_reset
    a_panic_of_a_device_ends_the_vm
    vcpus_stop_wherever_they_are
    a_guest_that_switches_itself_off_leaves_no_vcpu_behind
    application_processors_start_and_know_their_ids
    interrupts_reach_the_guest_and_its_end_of_interrupt_comes_back
    interrupts_are_attached_to_each_fresh_vm
    vectors_that_are_reprogrammed_leave_nothing_behind
    sources_share_a_wire
    slots_follow_the_memory_map
    a_hundred_vms_leave_nothing_behind
    the_vfio_device_refuses_what_is_not_vfio
}

fn shut_down(event: VmEvent) {
    match event {
        VmEvent::Shutdown => {}
        VmEvent::Reset => panic!("the guest was reset"),
        VmEvent::Failed(error) => panic!("{error}"),
    }
}

fn accesses_reach_their_handlers(kvm: &Kvm) -> Result<(), String> {
    #[rustfmt::skip]
    let code = [
        &[0xb0, 0x42,             // mov al, 0x42
          0xe6, 0x80,             // out 0x80, al
          0xe4, 0x81,             // in al, 0x81
          0xa2, 0x00, 0x20,       // mov [0x2000], al
          0xba, 0xf8, 0x03,       // mov dx, 0x3f8
          0xb8, 0x34, 0x12,       // mov ax, 0x1234
          0xef,                   // out dx, ax
          0x66, 0xa1, 0x04, 0x80, // mov eax, [0x8004]
          0x66, 0x40,             // inc eax
          0x66, 0xa3, 0x08, 0x80, // mov [0x8008], eax
        ][..], &DONE].concat();
    let machine = Machine::new(&code);
    let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    guest.vcpus.start().unwrap();
    shut_down(machine.end());
    assert_eq!(
        machine.take_log(),
        [
            "port write 0x0 [42]",
            "port read 0x1 1",
            "serial write 0x0 [34, 12]",
            "mmio read 0x4 4",
            "mmio write 0x8 [02, 00, 00, 00]",
        ]
    );
    assert_eq!(machine.byte(0x2000), 1);
    guest.vcpus.stop();
    guest.vcpus.join();
    let exits = guest.vcpus.exits();
    assert_eq!((exits.io_reads, exits.io_writes, exits.mmio_reads, exits.mmio_writes), (1, 3, 1, 1));
    assert_eq!(exits.other, 0);
    Ok(())
}

fn collected_writes_come_before_the_next_access_and_ignored_ones_never(kvm: &Kvm) -> Result<(), String> {
    #[rustfmt::skip]
    let code = [
        &[0xb0, 0x07, // mov al, 7
          0xe6, 0x80, // out 0x80, al
          0xe6, 0x84, // out 0x84, al
          0x66, 0xe7, 0x84, // out 0x84, eax
          0xb0, 0x08, // mov al, 8
          0xe6, 0x80, // out 0x80, al
          0xe4, 0x81, // in al, 0x81
        ][..], &DONE].concat();
    let machine = Machine::new(&code);
    let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    if guest.vm.collect_writes(0x80).is_err() {
        return Err("this KVM collects no port writes".into());
    }
    guest.vm.ignore_writes(0x84).unwrap();
    guest.vcpus.start().unwrap();
    shut_down(machine.end());
    assert_eq!(machine.take_log(), ["port write 0x0 [07]", "port write 0x0 [08]", "port read 0x1 1"]);
    guest.vcpus.stop();
    guest.vcpus.join();
    let exits = guest.vcpus.exits();
    assert_eq!((exits.io_reads, exits.io_writes), (1, 1), "the last write ends the guest");
    Ok(())
}

fn string_instructions_are_taken_apart(kvm: &Kvm) -> Result<(), String> {
    #[rustfmt::skip]
    let code = [
        &[0xfc,             // cld
          0xbe, 0x00, 0x11, // mov si, 0x1100
          0xb9, 0x05, 0x00, // mov cx, 5
          0xba, 0xf8, 0x03, // mov dx, 0x3f8
          0xf3, 0x6e,       // rep outsb
          0xbf, 0x00, 0x12, // mov di, 0x1200
          0xb9, 0x03, 0x00, // mov cx, 3
          0xba, 0xfa, 0x03, // mov dx, 0x3fa
          0xf3, 0x6d,       // rep insw
        ][..], &DONE].concat();
    let machine = Machine::new(&code);
    machine.ram.slice().write(0x1100, b"hello");
    shut_down(run(kvm, &machine, real_mode()));
    let written = b"hello".map(|byte| format!("serial write 0x0 [{byte:02x}]"));
    let log = machine.take_log();
    assert_eq!(log[..5], written);
    assert_eq!(log[5..], ["serial read 0x2 2"; 3]);
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|at| machine.byte(0x1200 + at)), [1, 0, 2, 0, 3, 0, 0]);
    Ok(())
}

fn writes_of_rom_trap_and_reads_do_not(kvm: &Kvm) -> Result<(), String> {
    let [low, high] = (ROM as u16 + 0x10).to_le_bytes();
    #[rustfmt::skip]
    let code = [
        &[0xa0, low, high, // mov al, [ROM + 0x10]
          0xfe, 0xc0,      // inc al
          0xa2, low, high, // mov [ROM + 0x10], al
          0xa0, low, high, // mov al, [ROM + 0x10]
          0xe6, 0x80,      // out 0x80, al
        ][..], &DONE].concat();
    let machine = Machine::new(&code);
    shut_down(run(kvm, &machine, real_mode()));
    assert_eq!(machine.take_log(), ["rom write 0x10 [22]", "port write 0x0 [21]"]);
    Ok(())
}

fn a_triple_fault_is_a_reset(kvm: &Kvm) -> Result<(), String> {
    // 32-bit: the descriptor table is empty from the start. ud2
    let machine = Machine::new(&[0x0f, 0x0b]);
    match run(kvm, &machine, protected_mode()) {
        VmEvent::Reset => Ok(()),
        other => panic!("{other:?}"),
    }
}

fn a_panic_of_a_device_ends_the_vm(kvm: &Kvm) -> Result<(), String> {
    struct Faulty;
    impl IoHandler for Faulty {
        fn read(&self, _: u64, _: &mut [u8]) {}
        fn write(&self, _: u64, _: &[u8]) {
            panic!("made for the test");
        }
    }
    // out 0x70, al
    let machine = Machine::new(&[0xe6, 0x70]);
    let faulty = Region::whole("faulty", 1, PRIORITY_PLATFORM, Backing::io(Arc::new(Faulty)));
    machine.memory.update(|layout| layout.add(Space::Pio, 0x70, faulty)).unwrap();
    match run(kvm, &machine, real_mode()) {
        VmEvent::Failed(error) => {
            assert_eq!(error.code(), Code::GuestFailed);
            assert!(error.cause().contains("made for the test"), "{error}");
            Ok(())
        }
        other => panic!("{other:?}"),
    }
}

fn vcpus_stop_wherever_they_are(kvm: &Kvm) -> Result<(), String> {
    let spinning = [0xeb, 0xfe]; // jmp $
    let halted = [0xf4, 0xeb, 0xfd]; // hlt; jmp to it
    let exiting = [0xe6, 0x80, 0xeb, 0xfc]; // out 0x80, al; jmp to it
    for code in [&spinning[..], &halted, &exiting] {
        let machine = Machine::new(code);
        // The second waits to be started. Different delays hit different places of the run loop.
        for delay in 0..25 {
            let mut guest = Guest::new(kvm, &machine, 2, real_mode()).unwrap();
            guest.vcpus.start().unwrap();
            std::thread::sleep(Duration::from_micros(delay * 40));
            guest.vcpus.stop();
            guest.vcpus.stop();
            guest.vcpus.join();
            assert_eq!(guest.vcpus.exits().other, 0);
        }
        assert!(machine.events.take().is_none());
    }
    // Never started, and stopped before the start.
    let machine = Machine::new(&spinning);
    drop(Guest::new(kvm, &machine, 1, real_mode()).unwrap());
    let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    guest.vcpus.stop();
    guest.vcpus.start().unwrap();
    guest.vcpus.join();
    Ok(())
}

/// As a guest's power-off goes: one vCPU says so, the others run, halt or exit; all of them are stopped at once, some from
/// a pause.
fn a_guest_that_switches_itself_off_leaves_no_vcpu_behind(kvm: &Kvm) -> Result<(), String> {
    const ROUNDS: usize = 40;
    let spinning = [0xeb, 0xfe]; // jmp $
    let halted = [0xf4, 0xeb, 0xfd]; // hlt; jmp to it
    let exiting = [0xe6, 0x80, 0xeb, 0xfc]; // out 0x80, al; jmp to it
    for cpus in [2, 4] {
        for (others, round) in [&spinning[..], &halted, &exiting].into_iter().cycle().zip(0..ROUNDS) {
            let machine = Machine::new(&[&START_OTHERS[..], &DONE].concat());
            machine.ram.slice().write(0x2000, others);
            let mut guest = Guest::new(kvm, &machine, cpus, protected_mode()).unwrap();
            guest.vcpus.start().unwrap();
            if round % 2 == 0 {
                guest.vcpus.pause();
                guest.vcpus.resume();
            }
            shut_down(machine.end());
            if round % 4 == 0 {
                guest.vcpus.pause();
            }
            drop(guest);
            assert!(machine.events.take().is_none());
        }
    }
    Ok(())
}

/// 32-bit: INIT, then SIPI to 0x2000, to all but itself.
#[rustfmt::skip]
const START_OTHERS: [u8; 20] = [
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x00, 0x45, 0x0c, 0x00, // mov dword [0xfee00300], 0xc4500
    0xc7, 0x05, 0x00, 0x03, 0xe0, 0xfe, 0x02, 0x46, 0x0c, 0x00, // mov dword [0xfee00300], 0xc4602
];

fn application_processors_start_and_know_their_ids(kvm: &Kvm) -> Result<(), String> {
    // hlt; jmp to it
    let code = [&START_OTHERS[..], &[0xf4, 0xeb, 0xfd]].concat();
    #[rustfmt::skip]
    let processor = [
        0x66, 0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
        0x0f, 0xa2,                         // cpuid
        0x66, 0xc1, 0xeb, 0x18,             // shr ebx, 24
        0x88, 0xd8,                         // mov al, bl
        0xe6, 0x80,                         // out 0x80, al
        0xf4,                               // hlt
        0xeb, 0xfd,                         // jmp to it
    ];
    let machine = Machine::new(&code);
    machine.ram.slice().write(0x2000, &processor);
    let mut guest = Guest::new(kvm, &machine, 4, protected_mode()).unwrap();
    guest.vcpus.start().unwrap();
    while machine.log.lock().len() < 3 {
        if let Some(event) = machine.events.take() {
            panic!("{event:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut log = machine.take_log();
    log.sort();
    assert_eq!(log, ["port write 0x0 [01]", "port write 0x0 [02]", "port write 0x0 [03]"]);
    Ok(())
}

fn interrupts_reach_the_guest_and_its_end_of_interrupt_comes_back(kvm: &Kvm) -> Result<(), String> {
    #[rustfmt::skip]
    let code = [
        0x0f, 0x01, 0x1e, 0x00, 0x15, // lidt [0x1500]
        0xb0, 0x11, 0xe6, 0x20, // ICW1 of the master 8259
        0xb0, 0x20, 0xe6, 0x21, // ICW2: vectors from 0x20
        0xb0, 0x04, 0xe6, 0x21, // ICW3
        0xb0, 0x01, 0xe6, 0x21, // ICW4
        0xb0, 0xe7, 0xe6, 0x21, // mask all but 3 and 4
        0xe6, 0x80,             // out 0x80, al: ready
        0xfb,                   // sti
        0xf4,                   // hlt
        0xeb, 0xfd,             // jmp to it
    ];
    #[rustfmt::skip]
    let handler = |port: u8| [
        0xe4, port,             // in al, port
        0xb0, 0x20, 0xe6, 0x20, // end of interrupt
        0xcf,                   // iret
    ];
    let machine = Machine::new(&code);
    let ram = machine.ram.slice();
    // Limit and base of the real mode's table.
    ram.write(0x1500, &[0xff, 0x03, 0, 0, 0, 0]);
    for (vector, address, port) in [(0x23u64, 0x1300u16, 0x83), (0x24, 0x1400, 0x84)] {
        ram.write(vector * 4, &u32::from(address).to_le_bytes());
        ram.write(address.into(), &handler(port));
    }
    let router = Router::new();
    let line = router.line(3);
    let trigger = EventFd::new(0).unwrap();
    let resample = EventFd::new(EFD_NONBLOCK).unwrap();
    let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    router.set_chip(guest.vm.clone()).unwrap();
    guest.vm.attach(4, &trigger, Some(&resample)).unwrap();
    guest.vcpus.start().unwrap();
    let wait_until = |seen: &dyn Fn() -> bool| {
        while !seen() {
            if let Some(event) = machine.events.take() {
                panic!("{event:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    let wait_for = |expected: &str| {
        wait_until(&|| machine.log.lock().last().is_some_and(|last| last == expected));
        machine.log.lock().clear();
    };
    wait_for("port write 0x0 [e7]");
    for _ in 0..3 {
        trigger.write(1).unwrap();
        wait_for("port read 0x4 1");
        wait_until(&|| resample.read().is_ok_and(|count| count == 1));
        line.set(true);
        wait_for("port read 0x3 1");
        line.set(false);
    }
    guest.vm.detach(4, &trigger).unwrap();
    router.clear_chip();
    Ok(())
}

fn slots_follow_the_memory_map(kvm: &Kvm) -> Result<(), String> {
    // inc byte [0x2000], then the end
    let machine = Machine::new(&[&[0xfe, 0x06, 0x00, 0x20][..], &DONE].concat());
    let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    let slots = || guest.slots.in_use();
    assert_eq!(slots(), 2, "RAM and ROM");
    let other = Arc::new(HostMem::anonymous(0x3000, PageSize::Small).unwrap());
    let place = |address, backing, len| {
        let region = Region::whole("over", len, PRIORITY_OVERLAY, backing);
        machine.memory.update(|layout| layout.add(Space::Mmio, address, region)).unwrap()
    };
    let remove = |id| machine.memory.update(|layout| layout.remove(id)).unwrap();
    let over = place(0x2000, Backing::Ram(other.slice()), 0x1000);
    assert_eq!(slots(), 4, "the RAM is split around it");
    let part = place(0x5800, Backing::Device(other.slice()), 0x800);
    assert_eq!(slots(), 5, "half a page is no slot, but the RAM is split around that page");
    let far = place(0xf_ffff_f000_0000, Backing::Device(other.slice()), 0x1000);
    assert!((5..=6).contains(&slots()), "where KVM maps nothing, a BAR traps and is no error");
    remove(far);
    remove(part);
    assert_eq!(slots(), 4);
    guest.vcpus.start().unwrap();
    shut_down(machine.end());
    assert_eq!(machine.byte(0x2000), 0);
    let mut seen = [0];
    other.slice().read(0, &mut seen);
    assert_eq!(seen, [1], "the guest wrote to what lies above");
    // With the guest halted and its vCPU still alive.
    remove(over);
    assert_eq!(guest.slots.in_use(), 2);
    Ok(())
}

fn interrupts_are_attached_to_each_fresh_vm(kvm: &Kvm) -> Result<(), String> {
    let machine = Machine::new(&[0xf4]);
    let router = Router::new();
    let vector = router.vector("test").unwrap();
    let line = router.line(16);
    let (trigger, resample) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    for _ in 0..10 {
        let guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
        router.set_chip(guest.vm.clone()).unwrap();
        router.batch(&[(&vector, Some(MsiMessage { address: 0xfee0_0000, data: 0x40 }))]);
        // Attached: a second time is refused.
        assert!(guest.vm.attach(24, vector.eventfd(), None).is_err());
        // No vCPU runs: levels are kept by the chip.
        line.set(true);
        line.set(false);
        guest.vm.attach(17, &trigger, Some(&resample)).unwrap();
        guest.vm.detach(17, &trigger).unwrap();
        vector.fire();
        router.clear_chip();
    }
    // The last VM is gone, and with it its irqfd: the eventfd is the vector's alone again.
    vector.clear();
    vector.fire();
    assert!(vector.is_pending());
    Ok(())
}

fn vectors_that_are_reprogrammed_leave_nothing_behind(kvm: &Kvm) -> Result<(), String> {
    let machine = Machine::new(&[0xf4]);
    let guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    let router = Router::new();
    router.set_chip(guest.vm.clone()).unwrap();
    let vectors: Vec<_> = (0..8).map(|_| router.vector("test").unwrap()).collect();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for round in 0..2000u32 {
        let vector = &vectors[round as usize % 8];
        router.batch(&[(vector, Some(MsiMessage { address: 0xfee0_0000, data: 0x40 + round % 64 }))]);
        if round % 3 == 0 {
            router.batch(&[(vector, None)]);
        }
        assert!(router.routes_in_use() <= 8);
    }
    assert_eq!(open(), before);
    drop(vectors);
    assert_eq!(router.routes_in_use(), 0);
    router.clear_chip();
    Ok(())
}

fn sources_share_a_wire(kvm: &Kvm) -> Result<(), String> {
    let machine = Machine::new(&[0xf4]);
    let guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    let router = Router::new();
    router.set_chip(guest.vm.clone()).unwrap();
    for _ in 0..100 {
        let (a, b, line) = (router.resample(17).unwrap(), router.resample(17).unwrap(), router.line(17));
        a.trigger().write(1).unwrap();
        line.set(true);
        b.trigger().write(1).unwrap();
        // Attached: a second time is refused.
        assert!(guest.vm.attach(17, a.trigger(), Some(a.unmask())).is_err());
        drop(a);
        line.set(false);
        drop(b);
    }
    router.clear_chip();
    Ok(())
}

fn a_hundred_vms_leave_nothing_behind(kvm: &Kvm) -> Result<(), String> {
    // inc byte [0x2000], then the end
    let machine = Machine::new(&[&[0xfe, 0x06, 0x00, 0x20][..], &DONE].concat());
    let count = |what: &str| std::fs::read_dir(format!("/proc/self/{what}")).unwrap().count();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap().matches("anon_inode:kvm").count();
    shut_down(run(kvm, &machine, real_mode()));
    let before = (count("fd"), count("task"), maps());
    for _ in 0..100 {
        let mut guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
        assert_eq!(guest.slots.in_use(), 2);
        guest.vcpus.start().unwrap();
        shut_down(machine.end());
    }
    assert_eq!((count("fd"), count("task"), maps()), before);
    assert_eq!(machine.byte(0x2000), 101, "the memory outlives its VMs");
    Ok(())
}

fn the_vfio_device_refuses_what_is_not_vfio(kvm: &Kvm) -> Result<(), String> {
    use passthru::vfio::seams::GroupSink;
    use std::os::fd::AsFd;
    let machine = Machine::new(&[0xf4]);
    let guest = Guest::new(kvm, &machine, 1, real_mode()).unwrap();
    let vfio = KvmVfio::new(guest.vm.clone());
    let stranger = NixEventFd::new().unwrap();
    vfio.del_group(stranger.as_fd());
    let error = vfio.add_group(stranger.as_fd()).unwrap_err();
    assert_eq!(error.code(), Code::KvmFailed);
    if error.cause().contains("KVM_CREATE_DEVICE") {
        return Err("this KVM has no VFIO device".into());
    }
    assert!(vfio.add_group(stranger.as_fd()).is_err());
    Ok(())
}
