/**
 * The published Python client, unmodified, against a whole daemon that listens; only the VMs are made up. It takes frames and event
 * streams more narrowly than the TypeScript client does. What it is asked to do stands in hypeman-python.py.
 */
import assert from 'node:assert/strict'
import { execFile } from 'node:child_process'
import { access } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { promisify } from 'node:util'
import { type FakeDaemon, startFakeDaemon } from '../harness/fake-daemon.ts'

const PYTHON = resolve(import.meta.dirname, '../../build/hypeman-python/bin/python')

const STORIES = [
  ['life', 'an instance is created, found, listed, put to sleep, woken, stopped, started and deleted'],
  ['commands', 'commands run, with their output and their exit code, also those that cannot or that take too long'],
  ['stdin', 'a command reads what it is given'],
  ['loss', 'a command whose instance is stopped is no success'],
  ['files', 'files go in and come out again, byte for byte'],
  ['logs', 'logs are read, and followed from one start to the next'],
  ['pushes', 'an image is pushed and found where it was pushed to'],
  ['volumes', 'a volume is made, found and deleted'],
] as const

describe('the published Python client', { timeout: 300_000 }, () => {
  let house: FakeDaemon
  before(async () => {
    await access(PYTHON).catch(() => assert.fail('the Python client is not set up: scripts/setup.sh says why'))
    house = await startFakeDaemon()
  })
  after(() => house?.[Symbol.asyncDispose]())

  for (const [story, what] of STORIES) {
    test(what, async () => {
      const env = { PATH: process.env.PATH, HYPEMAN_BASE_URL: house.url, HYPEMAN_API_KEY: house.token, PYTHONDONTWRITEBYTECODE: '1' }
      await promisify(execFile)(PYTHON, [join(import.meta.dirname, 'hypeman-python.py'), story], { env, timeout: 120_000 })
    })
  }
})
