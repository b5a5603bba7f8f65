package main

import (
	"context"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// ipamFuncs is the IPAM plugin for networks that another plugin makes. Our own
// plugin does the same in its process.
func ipamFuncs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: asIPAM(commandTime, ipamAdd),
		Del: asIPAM(commandTime, func(ctx context.Context, s *session, a *attachment, conf []byte) error {
			if err := s.ready(ctx); err != nil {
				return err
			}
			return s.release(ctx, a, conf)
		}),
		Check: asIPAM(commandTime, ipamCheck),
		GC: asIPAM(commandTime, func(ctx context.Context, s *session, _ *attachment, _ []byte) error {
			return s.collectAddresses(ctx, staleIn(s.conf))
		}),
		Status: asIPAM(statusTime, func(ctx context.Context, s *session, _ *attachment, _ []byte) error {
			return s.reachable(ctx)
		}),
	}
}

// asIPAM runs a command of the IPAM plugin, for that long at most. The session hands
// out addresses itself, whatever name it was called by. conf is the network's
// configuration as it was read.
func asIPAM(limit time.Duration, do func(ctx context.Context, s *session, a *attachment, conf []byte) error) func(*skel.CmdArgs) error {
	return func(cmd *skel.CmdArgs) error {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		s, a, err := begin(ctx, cmd)
		if err != nil {
			return asCNI(err)
		}
		defer s.close()
		s.conf.IPAM.Type = "calico-ipam"
		a.elsewhere = a.conf.Type != "calico"
		return asCNI(do(ctx, s, a, cmd.StdinData))
	}
}

func ipamAdd(ctx context.Context, s *session, a *attachment, conf []byte) error {
	if err := s.ready(ctx); err != nil {
		return err
	}
	addrs, err := s.assign(ctx, a, conf)
	if err != nil {
		return err
	}
	r := &types100.Result{CNIVersion: types100.ImplementedSpecVersion}
	for _, addr := range addrs {
		r.IPs = append(r.IPs, &types100.IPConfig{Address: *single(addr)})
	}
	return types.PrintResult(r, s.conf.CNIVersion)
}

func ipamCheck(ctx context.Context, s *session, a *attachment, _ []byte) error {
	prev, err := previous(s.conf)
	if err != nil {
		return err
	}
	d := &drift{}
	if err := d.checkAddresses(ctx, s, a, addressesOf(prev, a)); err != nil {
		return err
	}
	return d.err()
}
