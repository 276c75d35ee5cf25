//go:build !linux

package main

func readUsage(int, int) (usage, error) { return usage{}, errNoUsage }

func peakMemory(int) (int64, error) { return 0, errNoUsage }

func memory(int) (int64, error) { return 0, errNoUsage }
