"""Diffusion as pure tensor maths: schedules, samplers, guidance, noise, prompts, the VAE and loading a model.

Nothing here knows of nodes or of the engine. Latents are float32 and live in sigma space: x = clean + sigma * noise,
the coordinates of Karras et al. 2022 (https://arxiv.org/abs/2206.00364). A run is put together like this:

    table = load.schedule(folder)
    sigmas = schedule.tail(schedule.karras, table, steps=20, denoise=0.75).tolist()
    noise = Streams.open(seeds, shape)
    start = noise.initial * sigmas[0] + latent
    run = guided(euler(start, sigmas, noise), Guidance(positive, negative, cfg=7))
    [result] = drive([run], Denoiser(unet, table))
"""
