package process

import "syscall"

// dieWithParent makes the kernel kill the child when its parent dies, so that
// even a killed sandbox leaves no process behind.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
