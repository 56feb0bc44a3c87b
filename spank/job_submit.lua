-- job_submit.lua for slurmctld: copy it beside slurm.conf, or take its lines into a job_submit.lua of your own.
--
-- Copied and not linked, and with pcall: slurmctld does not start without a job_submit.lua that it can load, and
-- scratch_slurm.lua may be gone or new at any time. Without it jobs are submitted as they are.

local found, scratch_slurm = pcall(dofile, "/usr/local/lib/scratch-slurm/scratch_slurm.lua")
if not found or type(scratch_slurm) ~= "table" then
    slurm.log_error("scratch-slurm: job_submit: left out: %s", tostring(scratch_slurm))
    scratch_slurm = nil
end

function slurm_job_submit(job_desc, part_list, submit_uid)
    return scratch_slurm and scratch_slurm.submit(job_desc, part_list) or slurm.SUCCESS
end

function slurm_job_modify(job_desc, job_rec, part_list, modify_uid)
    return scratch_slurm and scratch_slurm.modify(job_desc, job_rec, part_list) or slurm.SUCCESS
end
