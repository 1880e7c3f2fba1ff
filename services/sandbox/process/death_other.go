//go:build !linux

package process

import "syscall"

// dieWithParent does nothing: only Linux knows a parent-death signal.
func dieWithParent(*syscall.SysProcAttr) {}
