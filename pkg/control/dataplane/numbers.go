package dataplane

// numbers maps the compiler's class numbers to those in the kernel's tables. They
// differ because a new process compiles anew while the kernel goes on with the
// numbers of the old one: where the old process's number means the same it is
// kept, so that a restart rewrites nothing. 0 is 0 on both sides.
type numbers struct {
	kernel map[uint32]uint32 // compiler's -> kernel's
	taken  map[uint32]bool   // kernel's numbers that some address or port may still carry
	free   []uint32          // those of them that none did when assign looked
	top    uint32            // one more than the highest kernel number ever taken
}

func newNumbers() *numbers {
	return &numbers{kernel: map[uint32]uint32{0: 0}, taken: map[uint32]bool{0: true}, top: 1}
}

// reserve marks a number that is in the kernel's tables, unless it is none below the
// limit.
func (n *numbers) reserve(k, limit uint32) {
	if k < limit {
		n.taken[k] = true
		n.top = max(n.top, k+1)
	}
}

// adopt keeps the kernel's numbers where they mean exactly what the compiler's
// do. pairs says which number of the compiler stands where which of the kernel's
// does now.
func (n *numbers) adopt(pairs map[[2]uint32]bool) {
	kernelOf, compilerOf := make(map[uint32]int), make(map[uint32]int)
	for p := range pairs {
		kernelOf[p[0]]++
		compilerOf[p[1]]++
	}
	for p := range pairs {
		if p[0] != 0 && p[1] != 0 && n.taken[p[1]] && kernelOf[p[0]] == 1 && compilerOf[p[1]] == 1 {
			n.kernel[p[0]] = p[1]
		}
	}
}

// assign makes the numbering cover exactly the compiler's numbers in use.
// stillThere are the kernel's numbers that its tables carry at this moment: they
// are not given a new meaning.
func (n *numbers) assign(inUse map[uint32]bool, stillThere func(uint32) bool) {
	for c, k := range n.kernel {
		if c != 0 && !inUse[c] {
			delete(n.kernel, c)
			n.reserve(k, k+1)
		}
	}
	used := make(map[uint32]bool, len(n.kernel))
	for _, k := range n.kernel {
		used[k] = true
	}
	var free []uint32
	for k := range n.taken {
		if !used[k] && !stillThere(k) {
			free = append(free, k)
			delete(n.taken, k)
		}
	}
	for c := range inUse {
		if _, ok := n.kernel[c]; ok {
			continue
		}
		var k uint32
		if len(free) > 0 {
			k = free[len(free)-1]
			free = free[:len(free)-1]
		} else {
			k = n.top
		}
		n.kernel[c] = k
		n.reserve(k, k+1)
	}
	for _, k := range free {
		n.taken[k] = true // free, but known: the next assign finds it
	}
	n.free = free
}

// renew gives a number to a number of the compiler's that has a new meaning or none
// yet.
func (n *numbers) renew(c uint32, stillThere func(uint32) bool) uint32 {
	if k, ok := n.kernel[c]; ok && !stillThere(k) {
		return k
	}
	k := n.take(stillThere)
	n.kernel[c] = k
	return k
}

// take returns a number that nothing carries.
func (n *numbers) take(stillThere func(uint32) bool) uint32 {
	k := n.top
	for len(n.free) > 0 {
		last := n.free[len(n.free)-1]
		if n.free = n.free[:len(n.free)-1]; !stillThere(last) {
			k = last
			break
		}
	}
	n.reserve(k, k+1)
	return k
}

// has says whether a number of the compiler's has one.
func (n *numbers) has(c uint32) bool { _, ok := n.kernel[c]; return ok }

// forget drops what the compiler's numbers meant, but not what the kernel's do.
func (n *numbers) forget() { n.kernel = map[uint32]uint32{0: 0} }
